"""Attributions to pixels, from the gradient of a class's logit at the network's input, computed without torch."""

import numpy as np

from ..arrays import Array
from ..engines import Model
from ..gradients import gradient, needed
from ..progress import Progress, silent

BATCH = 4  # images whose layer outputs are in memory at once: 60 MB each for VGG-16 at 224 pixels
NOISE = 0.15  # standard deviation in shares of the input's range; SmoothGrad's authors recommend 0.1 to 0.2
SEED = 0


def input_gradients(model: Model, batch: Array, signal: Array) -> Array:
    """The gradients of sums of logits at the input.

    Args:
        model: a network with a head, on an engine.
        batch: float32 [images, 3, height, width].
        signal: the factor of each logit in each sum, float32 [sums, units].

    Returns:
        float32 [images, sums, 3, height, width].
    """
    values = model.engine.run(batch, needed(model.network.architecture))
    return np.stack([
        gradient(model.network, {name: value[place] for name, value in values.items()}, signal) for place in range(len(batch))
    ])  # fmt: skip


def saliency(gradients: Array) -> Array:
    """The largest magnitude among the channels of a gradient [sums, 3, height, width]: [sums, height, width].

    Simonyan et al., arXiv 1312.6034, section 3.1.
    """
    return np.asarray(np.abs(gradients).max(1))


def smoothgrad(model: Model, image: Array, signal: Array, samples: int, progress: Progress = silent) -> Array:
    """SmoothGrad: the saliency of the mean gradient over noisy copies of an image. Smilkov et al., arXiv 1706.03825.

    The noise is normal, with a standard deviation of 15% of the input's range, from the same seed for each image.

    Args:
        model: a network with a head, on an engine.
        image: its input, float32 [3, height, width].
        signal: the factor of each logit in each sum, float32 [sums, units].
        samples: number of noisy copies.
        progress: called after each batch of copies.

    Returns:
        float32 [sums, height, width].
    """
    rng, spread = np.random.default_rng(SEED), np.float32(NOISE * np.ptp(image))
    total = np.zeros((len(signal), *image.shape), np.float32)
    for start in range(0, samples, BATCH):
        noise = rng.standard_normal((min(BATCH, samples - start), *image.shape), np.float32)
        total += input_gradients(model, image + spread * noise, signal).sum(0)
        progress("SmoothGrad", start + len(noise), samples)
    return saliency(total / np.float32(samples))


def integrated_gradients(model: Model, image: Array, signal: Array, samples: int, progress: Progress = silent) -> Array:
    """Integrated gradients from an input of zeros, summed over colours. Sundararajan et al., arXiv 1703.01365, section 3.

    The integral is that of Gauss and Legendre, as in captum. The sum of a map is close to the difference of the logits of
    the image and of zeros, which is the mean colour if the preprocessing subtracts it.

    Args:
        model: a network with a head, on an engine.
        image: its input, float32 [3, height, width].
        signal: the factor of each logit in each sum, float32 [sums, units].
        samples: number of points of the path at which the gradient is computed.
        progress: called after each batch of points.

    Returns:
        float32 [sums, height, width]; negative values are evidence against the class.
    """
    nodes, weights = np.polynomial.legendre.leggauss(samples)  # on -1..1
    total = np.zeros((len(signal), *image.shape), np.float32)
    for start in range(0, samples, BATCH):
        shares = ((1 + nodes[start : start + BATCH]) / 2).astype(np.float32)
        gradients = input_gradients(model, shares[:, None, None, None] * image, signal)
        total += np.tensordot((weights[start : start + BATCH] / 2).astype(np.float32), gradients, 1)
        progress("Integrated gradients", start + len(shares), samples)
    return np.asarray((total * image).sum(1))
