"""The published model files, one row each, with the facts that their publishers state; None where they state nothing."""

from dataclasses import dataclass

from ..architectures import Architecture
from . import osmr


@dataclass(frozen=True)
class Published:
    """A published model file. Accuracies are the publisher's, on the 50,000 validation images of ImageNet, centre crop."""

    name: str  # publisher/model
    architecture: Architecture
    preset: str  # name of the preprocessing
    address: str  # https:// URL
    licence: str  # SPDX identifier
    bytes: int | None = None  # size of the file
    sha256: str | None = None  # hexadecimal, all digits or the first ones, as published
    md5: str | None = None  # hexadecimal, where the publisher gives no SHA-256
    onnx: str | None = None  # ONNX version that wrote the file
    opset: int | None = None  # ONNX opset
    data_bytes: int | None = None  # size of the tarball with sample data, which is no longer served
    data_sha256: str | None = None  # SHA-256 of that tarball
    top1: float | None = None  # percent
    top5: float | None = None  # percent
    sha1: str | None = None  # hexadecimal, where the publisher gives neither SHA-256 nor MD5
    member: str = ""  # name of the file, if the address is that of a zip file with it

    @property
    def file(self) -> str:
        """The path of the file in a cache or a mirror, such as `zoo/vgg16-12.onnx`."""
        whole = self.member or self.address
        return self.name + whole[whole.rindex(".") :]

    @property
    def digest(self) -> tuple[str, str] | None:
        """The algorithm and all or the first hexadecimal digits of the published hash; None if no hash is published."""
        hashes = (("sha256", self.sha256), ("md5", self.md5), ("sha1", self.sha1))
        return next(((algorithm, found) for algorithm, found in hashes if found), None)

    @property
    def max_bytes(self) -> int:
        """The largest possible size: the published one, or float32 parameters and 1 MiB for their names."""
        return self.bytes or 4 * self.architecture.parameter_count + 2**20

    def fits(self, size: int) -> bool:
        """Whether the file may have this size in bytes; if none is published, that of float32 parameters with their names."""
        return size == self.bytes if self.bytes else 4 * self.architecture.parameter_count <= size <= self.max_bytes


def _zoo(
    file: str, architecture: str, preset: str, onnx: str, opset: int, top1: float | None, top5: float | None,
    bytes: int, sha256: str, data_bytes: int, data_sha256: str,
) -> Published:  # fmt: skip
    folder = "https://huggingface.co/onnxmodelzoo/legacy_models/resolve/main/validated/vision/classification/vgg/model"
    return Published(
        f"zoo/{file}", Architecture(architecture), preset, f"{folder}/{file}.onnx", "Apache-2.0", bytes, sha256, None,
        onnx, opset, data_bytes, data_sha256, top1, top5,
    )  # fmt: skip


def _torchvision(file: str, bytes: int | None, top1: float, top5: float) -> Published:
    name, head = file.rsplit("-", 1)
    address = f"https://download.pytorch.org/models/{file}.pth"
    architecture = Architecture(name.replace("_", "-"))
    return Published(
        f"torchvision/{architecture.name}", architecture, "torchvision", address, "BSD-3-Clause", bytes, head,
        top1=top1, top5=top5,
    )  # fmt: skip


def _timm(name: str, sha256: str | None, top1: float, top5: float) -> Published:
    address = f"https://huggingface.co/timm/{name}.tv_in1k/resolve/main/model.safetensors"
    architecture = Architecture(name.replace("_", "-"))
    return Published(
        f"timm/{name}.tv_in1k", architecture, "torchvision", address, "BSD-3-Clause", None, sha256, top1=top1, top5=top5
    )


def _keras(name: str, bytes: int, md5: str, top1: float, top5: float) -> Published:
    file = f"{name}_weights_tf_dim_ordering_tf_kernels.h5"
    address = f"https://storage.googleapis.com/tensorflow/keras-applications/{name}/{file}"
    return Published(f"keras/{name}", Architecture(name), "caffe", address, "CC-BY-4.0", bytes, md5=md5, top1=top1, top5=top5)


def _openmmlab(file: str, top1: float, top5: float) -> Published:
    name, head = file.split("_batch256")[0].replace("_", "-"), file.rsplit("-", 1)[1]
    address = f"https://download.openmmlab.com/mmclassification/v0/vgg/{file}.pth"
    return Published(
        f"mmpretrain/{name}", Architecture(name), "torchvision", address, "Apache-2.0", None, head, top1=top1, top5=top5
    )


def _gluoncv(name: str, sha1: str, top1: float, top5: float) -> Published:
    file, model = f"{name}-{sha1[:8]}", name.replace("_", "-")
    address = f"https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/gluon/models/{file}.zip"
    return Published(
        f"gluoncv/{model}", Architecture(model), "gluon", address, "Apache-2.0",
        top1=top1, top5=top5, sha1=sha1, member=f"{file}.params",
    )  # fmt: skip


def _osmr(package: str, name: str, error1: float, error5: str, release: str, sha1: str) -> Published:
    member = f"{name}-{error5}-{sha1[:8]}{osmr.SUFFIXES[package]}"
    norm, _, plain = name.rpartition("_")
    return Published(
        f"{package}/{name.replace('_', '-')}",
        Architecture(plain.removesuffix("b") + ("-bn" if norm else "")),
        "torchvision" if package == "pytorchcv" else "gluon",
        f"https://github.com/osmr/imgclsmob/releases/download/{release}/{member}.zip",
        "MIT",
        top1=round(100 - error1, 2), top5=round(100 - int(error5) / 100, 2), sha1=sha1, member=member,
    )  # fmt: skip


PUBLISHED = (
    # onnx/models: ONNX_HUB_MANIFEST.json and the VGG page. Its own downloads ended on 1 July 2025; this mirror still serves.
    _zoo("vgg16-7", "vgg16", "zoo", "1.2.1", 7, 72.62, 91.14,
         553_437_328, "f20805a3ecccaa88647bbab4ad011ff2412a9838485ea844de0fcbce349820b9",
         512_679_010, "586413f9108e2316ebf80c3aa484d55f995d693b153e4c90742750519a9e27be"),
    _zoo("vgg16-bn-7", "vgg16-bn", "zoo", "1.2.1", 7, 72.71, 91.21,
         553_512_191, "4fdceabf1ef715c9ed3020fa2eac1cb2a448296c086b03633c80cf47e1c5afce",
         512_894_836, "143e59ca3000cc3b461cfe09d4c62a93bb5e9f7a0c4e5db0010e1a525fdd50bd"),
    _zoo("vgg19-7", "vgg19", "zoo", "1.2.1", 7, 73.72, 91.58,
         574_677_321, "692f9f927f1df1b89033787a77a73eac59fd9b3344f9ecdf0b13221e41c2046f",
         532_124_692, "797517bc882ea820d09f803e711c203e223b0c214b3c85412cb6c059b63325b7"),
    _zoo("vgg19-bn-7", "vgg19-bn", "zoo", "1.2.1", 7, 73.83, 91.79,
         574_774_380, "ce0987dfa6228ad29708013f38b7f73cbc14ca6066a05fc22ee49b35871c63ed",
         532_271_265, "976427d5cbb8909784fbe3ba997fcf62a67b92c42ffd54f961c0e0748e004b1c"),
    _zoo("vgg16-12", "vgg16", "onnxrt", "1.9.0", 12, 72.38, 91.00,
         553_437_752, "722c42f53ca03a5480296bf8f9c85a151de3eed9ec982d7d2302ff6e2900c67b",
         511_942_031, "bab278d40411f29dfc2e9515c534d2871eb0393480b736855bfe7f73c312cbc6"),
    _zoo("vgg16-12-int8", "vgg16", "onnxrt", "1.9.0", 12, 72.32, 90.97,
         138_407_238, "0d0a8e1d69f70404421e37dbad4f8bd21d42758e9f426bd5b39e9e4e9e1afa23",
         106_112_057, "75c08988b598e24173a21a7dc0b396ca9dc49afb63be35e5c993ac56b297e4cf"),
    _zoo("vgg16-12-qdq", "vgg16", "onnxrt", "1.9.0", 12, 72.35, 91.02,
         138_424_439, "74ae0fa7e9e5b16782581bf17b5582080d1c06b69ed59410c7b1f190d9328bb1",
         103_626_016, "ba8f1a789554deab15d28a3c4e6a1508595c326d36e5d744e8d5acf2729f7621"),
    _zoo("vgg19-caffe2-3", "vgg19", "caffe", "1.1", 3, None, None,
         574_674_684, "2a7d16457887670e978c9bcfc64e686482d1da807fcfbd7536074e47ad4540f7",
         536_839_176, "8646cc6d0252d3453328da9a15a32e82201bbf6854a865125344e2430c90a4e1"),
    _zoo("vgg19-caffe2-6", "vgg19", "caffe", "1.1.2", 6, None, None,
         574_674_798, "088ee597d84957594ded3fd44d669ed142ce2484048e1d9f7fafeb66d12913fa",
         536_839_354, "289f11496aaa99ca1fe68ea0912b96bfaae4dcc55263187dfdc844e6f5022522"),
    _zoo("vgg19-caffe2-7", "vgg19", "caffe", "1.2", 7, None, None,
         574_674_712, "967f4f585137782d541301ba2d4a9c006be92671de53e37739d92e386e3124ea",
         534_082_025, "4af84e5006a0196facad8add53094424a22809ef97e434215a923b20fc1a528b"),
    _zoo("vgg19-caffe2-8", "vgg19", "caffe", "1.3", 8, None, None,
         574_674_712, "639ce28961555254d0726c6bb7b2ae7bb9665233d00e04d1add3425aae86cb87",
         534_082_067, "1f6254d85d8a102e36a1c2c4ebd7b1f5831d95fd8255a81a0411f24b3c38381e"),
    _zoo("vgg19-caffe2-9", "vgg19", "caffe", "1.4", 9, None, None,
         574_674_712, "cfb97260b303ad3963999662456571b89c5f73dbdd2fd9dffd19fed7a90f766b",
         534_081_932, "bf7f96d04f4b635a8a37efd4540ea35958d52201971e91cb74bb55c89e6f4d5c"),
    # torchvision 0.12 and later, torchvision/models/vgg.py, IMAGENET1K_V1; the file name has the first digits of the hash.
    # Sizes are those that progress bars of torch.hub show in public logs.
    _torchvision("vgg11-8a719046", None, 69.020, 88.628),
    _torchvision("vgg13-19584684", None, 69.928, 89.246),
    _torchvision("vgg16-397923af", 553_433_881, 71.592, 90.382),
    _torchvision("vgg19-dcbb9e9d", 574_673_361, 72.376, 90.876),
    _torchvision("vgg11_bn-6002323d", None, 70.370, 89.810),
    _torchvision("vgg13_bn-abd245e5", None, 71.586, 90.374),
    _torchvision("vgg16_bn-6c64b313", 553_507_836, 73.360, 91.516),
    _torchvision("vgg19_bn-c79401a0", 574_769_405, 74.218, 91.842),
    # timm's repositories on Hugging Face, the same weights; hashes from the pages of the files, accuracies from
    # pytorch-image-models, results/results-imagenet.csv (crop_pct 0.875, bilinear).
    _timm("vgg11", "682c023808812148d4e60c76d80ad83dbeaf5d50eb1a952a0b836895003151e5", 69.022, 88.624),
    _timm("vgg13", None, 69.932, 89.250),
    _timm("vgg16", "57b026918159a6bf9faf8405c3a551903768e7138989d9c6224a14227203fad8", 71.592, 90.384),
    _timm("vgg19", "11aea017b543ff59233749d8f1cf544cda749378f5790d2fedab841fb86b7669", 72.378, 90.874),
    _timm("vgg11_bn", None, 70.382, 89.808),
    _timm("vgg13_bn", "7dae235e35772693cd527e7ac9ef8f6594707a14a8d26aabdb83c0baa6847861", 71.588, 90.378),
    _timm("vgg16_bn", "88bbedbc8e780413736db38ac4efd41b06fc0e93fd5b8879b584bba63a950129", 73.370, 91.514),
    _timm("vgg19_bn", "f8249087e63bae61c6166bb23d7c26efe1b2a43fd9fb5cd60ac6ce00535ba312", 74.216, 91.844),
    # keras/src/applications/vgg16.py and vgg19.py; accuracies from keras.io/api/applications.
    _keras("vgg16", 553_467_096, "64373286793e3c8b2b4e3219cbf3544b", 71.3, 90.1),
    _keras("vgg19", 574_710_816, "cbe5617147190e668d6c5d5026f83318", 71.3, 90.0),
    # open-mmlab/mmpretrain, configs/vgg/README.md; the file name has the first digits of the SHA-256.
    _openmmlab("vgg11_batch256_imagenet_20210208-4271cd6c", 68.75, 88.87),
    _openmmlab("vgg13_batch256_imagenet_20210208-4d1d6080", 70.02, 89.46),
    _openmmlab("vgg16_batch256_imagenet_20210208-db26f1a5", 71.62, 90.49),
    _openmmlab("vgg19_batch256_imagenet_20210208-e6920e4a", 72.41, 90.80),
    _openmmlab("vgg11_bn_batch256_imagenet_20210207-f244902c", 70.67, 90.16),
    _openmmlab("vgg13_bn_batch256_imagenet_20210207-1a8b7864", 72.12, 90.66),
    _openmmlab("vgg16_bn_batch256_imagenet_20210208-7e55cd29", 73.74, 91.66),
    _openmmlab("vgg19_bn_batch256_imagenet_20210208-da620c4f", 74.68, 92.27),
    # dmlc/gluon-cv, gluoncv/model_zoo/model_store.py and its table of classification models.
    _gluoncv("vgg11", "dd221b160977f36a53f464cb54648d227c707a05", 66.62, 87.34),
    _gluoncv("vgg13", "6bc5de58a05a5e2e7f493e2d75a580d83efde38c", 67.74, 88.11),
    _gluoncv("vgg16", "e660d4569ccb679ec68f1fd3cce07a387252a90a", 73.23, 91.31),
    _gluoncv("vgg19", "ad2f660d101905472b83590b59708b71ea22b2e5", 74.11, 91.35),
    _gluoncv("vgg11_bn", "ee79a8098a91fbe05b7a973fed2017a6117723a8", 68.59, 88.72),
    _gluoncv("vgg13_bn", "7d97a06c3c7a1aecc88b6e7385c2b373a249e95e", 68.84, 88.82),
    _gluoncv("vgg16_bn", "7f01cf050d357127a73826045c245041b0df7363", 73.10, 91.76),
    _gluoncv("vgg19_bn", "f360b758e856f1074a85abd5fd873ed1d98297c3", 74.33, 91.85),
    *(_osmr(*row) for row in osmr.ROWS),
)  # fmt: skip

# Names without publisher: the newest float32 file of that name in the ONNX Model Zoo, otherwise torchvision's.
BARE = {
    "vgg11": "torchvision/vgg11",
    "vgg11-bn": "torchvision/vgg11-bn",
    "vgg13": "torchvision/vgg13",
    "vgg13-bn": "torchvision/vgg13-bn",
    "vgg16": "zoo/vgg16-12",
    "vgg16-bn": "zoo/vgg16-bn-7",
    "vgg19": "zoo/vgg19-7",
    "vgg19-bn": "zoo/vgg19-bn-7",
    "vgg19-caffe2": "zoo/vgg19-caffe2-9",
}
