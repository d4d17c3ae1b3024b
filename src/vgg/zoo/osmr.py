"""The files of osmr's imgclsmob: one training in Gluon, converted for the packages pytorchcv, kerascv and tf2cv.

Errors from the README of each package; names, releases and SHA-1 from its models/model_store.py, where the SHA-1 is that of the
file in the published zip file. Accuracies differ since images are resized by Pillow for pytorchcv, and by OpenCV otherwise. The
files whose names end in b have biases of convolutions; some of them are GluonCV's.
"""

SUFFIXES = {"pytorchcv": ".pth", "gluoncv2": ".params", "kerascv": ".h5", "tf2cv": ".tf2.h5"}  # of the files
# Package, model, top-1 error in percent, top-5 error in 1/100 percent, release, SHA-1.
ROWS = (
    ("pytorchcv", "vgg11", 29.90, "1036", "v0.0.381", "71e85f6ef76f56e3e89d597d2fc461496ed281e9"),
    ("pytorchcv", "vgg13", 28.76, "0975", "v0.0.388", "2b2c8770a7610d9dcd444ec8ae992681e270eb42"),
    ("pytorchcv", "vgg16", 26.98, "0865", "v0.0.401", "5ca155da3dc6687e070ff34815cb5aabd0bed4b9"),
    ("pytorchcv", "vgg19", 25.74, "0790", "v0.0.420", "9bd923a82ece9f038e944d7666f1c11b478dc7e6"),
    ("pytorchcv", "bn_vgg11", 29.01, "0961", "v0.0.339", "10f01fba064ec168df074b98d59ae7b82b1207d4"),
    ("pytorchcv", "bn_vgg13", 27.83, "0913", "v0.0.353", "b1acd7158e6e9973ce9e274c65ceb64a244f9967"),
    ("pytorchcv", "bn_vgg16", 25.72, "0779", "v0.0.359", "0f570b928b180f909fa39df3924f89c746816722"),
    ("pytorchcv", "bn_vgg19", 24.13, "0712", "v0.0.360", "3f286cbd2a57abb4c516425c5e095c2cfc8d54e3"),
    ("pytorchcv", "bn_vgg11b", 29.56, "0996", "v0.0.407", "ef747edc87705e1ed500a31c80199273b2fbd5fa"),
    ("pytorchcv", "bn_vgg13b", 28.47, "0924", "v0.0.488", "5f313c535fc47c3ad6bd2f741f453dbcf8191be6"),
    ("pytorchcv", "bn_vgg16b", 25.97, "0795", "v0.0.489", "bfff365ac38a763aaed4b4d9bdc7b2cdbe6c8e9f"),
    ("pytorchcv", "bn_vgg19b", 25.13, "0746", "v0.0.490", "f523b4e4b070a170f63e9bb6965fca3764751aa9"),
    ("gluoncv2", "vgg11", 29.59, "1016", "v0.0.381", "3d78e0ec95d358577acf8b2e2f768a72ec319ee3"),
    ("gluoncv2", "vgg13", 28.37, "0950", "v0.0.388", "d2bcaaf3704afb47b2818066255b3de65d0c03e1"),
    ("gluoncv2", "vgg16", 26.61, "0832", "v0.0.401", "22fe503aa438ebfd1f3128b676db21a06de3cd59"),
    ("gluoncv2", "vgg19", 25.58, "0767", "v0.0.420", "e198aa1f6519b3331e5ebbe782ca35fd2aca6213"),
    ("gluoncv2", "bn_vgg11", 28.56, "0934", "v0.0.339", "3f79cab1e9e0bab0d57c0f80a6c9782e5cdc765d"),
    ("gluoncv2", "bn_vgg13", 27.68, "0887", "v0.0.353", "540243b0a3eb2ae3974c2d75cf82e655fa4f0dda"),
    ("gluoncv2", "bn_vgg16", 25.50, "0757", "v0.0.359", "90441925c7c19c9db6bf96824c2440774c0e54df"),
    ("gluoncv2", "bn_vgg19", 23.91, "0689", "v0.0.360", "cd8f4229e5e757ba951afc6eb1a4ec7a471022f7"),
    ("gluoncv2", "bn_vgg11b", 29.24, "0975", "v0.0.407", "685ae89dcf3916b9c6e887d4c5bc441a34253744"),
    ("gluoncv2", "bn_vgg13b", 28.23, "0912", "v0.0.488", "fc678318391d45465bda4aa17744dc0d148135e3"),
    ("gluoncv2", "bn_vgg16b", 25.83, "0775", "v0.0.489", "77dad99b4f72176870655ffbf59e96f3b9570a0b"),
    ("gluoncv2", "bn_vgg19b", 24.79, "0735", "v0.0.490", "8d9a132bfd9230304e588ec159170ee3173d64ba"),
    ("kerascv", "vgg11", 29.59, "1016", "v0.0.381", "c6bc31d0f1f1575081107f4ea8e2ecec3132bfb4"),
    ("kerascv", "vgg13", 28.37, "0950", "v0.0.388", "f0e5bed7cb64111b0fdf73875a33500e8f78a365"),
    ("kerascv", "vgg16", 26.61, "0832", "v0.0.401", "baf4278d9d75dbb76b459e7f30f2d1e18c44ae1b"),
    ("kerascv", "vgg19", 25.58, "0767", "v0.0.420", "315c0bc8ddcdfd90b503a6fa197a596c1b23b897"),
    ("kerascv", "bn_vgg11", 28.55, "0934", "v0.0.339", "96a967baaf97ebf8c5802f60aabbc30fc59d9027"),
    ("kerascv", "bn_vgg13", 27.68, "0887", "v0.0.353", "d4a3da4039babf9ec89348ed3a9f11bb2d899c25"),
    ("kerascv", "bn_vgg16", 25.50, "0757", "v0.0.359", "2960ba135dda2678514e0ed6d1118adc9ff4e9dc"),
    ("kerascv", "bn_vgg19", 23.91, "0689", "v0.0.360", "aaee8cb7d2c70a4db5dc3c665158b835e00c3fbc"),
    ("kerascv", "bn_vgg11b", 29.24, "0975", "v0.0.407", "8a35fd728d1e35570ffaedffd4d8fc8f968f4bfe"),
    ("kerascv", "bn_vgg13b", 29.48, "1016", "v0.0.123", "b26cafd39447f039a8124dda8a177b2dc72d98f3"),
    ("kerascv", "bn_vgg16b", 26.88, "0865", "v0.0.123", "2272fdd110106e830920bfdd5999fa58737f20e4"),
    ("kerascv", "bn_vgg19b", 25.65, "0814", "v0.0.123", "852e2ca228821f3ea1d32a12ce47a9a001236f5e"),
    ("tf2cv", "vgg11", 29.59, "1017", "v0.0.422", "c20556f4179e9311f28baa310702b6ea9265fee8"),
    ("tf2cv", "vgg13", 28.41, "0951", "v0.0.422", "9fa609fcb5cb44caf2737d13c0accc07cdea0c9d"),
    ("tf2cv", "vgg16", 26.59, "0834", "v0.0.422", "ce78831f5d0640bd2fd619ba7d8d5027e62eb4f2"),
    ("tf2cv", "vgg19", 25.57, "0768", "v0.0.422", "ec5ac0baa5d49c041af48e67d34d1a89f1a72e7f"),
    ("tf2cv", "bn_vgg11", 28.57, "0936", "v0.0.422", "ef31b86687e83d413cb9c95c9ead657c3de9f21b"),
    ("tf2cv", "bn_vgg13", 27.67, "0887", "v0.0.422", "2cccc7252ab4798fd9a6c3ce9d0b59717c47e40b"),
    ("tf2cv", "bn_vgg16", 25.46, "0759", "v0.0.422", "1ca9dee8ef41ed84a216636d3c21380988ea1bf8"),
    ("tf2cv", "bn_vgg19", 23.89, "0688", "v0.0.422", "81d25be84932c1c2848cabd4533423e3fd2cdbec"),
    ("tf2cv", "bn_vgg11b", 29.31, "0975", "v0.0.422", "aeaccfdc4a655d895e280165cf5be856472ca91f"),
    ("tf2cv", "bn_vgg13b", 28.23, "0916", "v0.0.488", "64ddd3e799df62223424441e0acd22d8f6a1bef8"),
    ("tf2cv", "bn_vgg16b", 25.80, "0776", "v0.0.489", "4e07f81c0a59865ca3546898aa02a445a0a00cf2"),
    ("tf2cv", "bn_vgg19b", 24.86, "0733", "v0.0.490", "7a0920e8b4219585cee8cbbf7dcae5ae8a5e3f1f"),
)  # fmt: skip
