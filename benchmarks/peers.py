"""VGG side by side with its peers, in one run: vgg's engines, and ncnn and MNN where they are installed.

    pip install 'vgg[openvino,torch]' ncnn pnnx MNN
    python benchmarks/peers.py vgg16.onnx vgg19.onnx

Everything computes in float32, on the same batches, in the same rounds, and its logits are held against the native engine's before
it is timed.
"""
