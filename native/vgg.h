/* The C interface of the native engine.
 *
 * Its only caller is vgg/engines, which checks shapes, counts and indices; the functions here don't. No C++ exception
 * leaves a function: those that can fail return VGG_OK or an error code, and vgg_error describes the error. Functions of one
 * network may be called from several threads; one call at a time runs, the others wait. After a fork, the child's network works
 * too, whatever the parent's threads were doing. */
#ifndef VGG_H
#define VGG_H

#include <stdint.h>

#if defined(_WIN32)
#define VGG_API __declspec(dllexport)
#else
#define VGG_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { VGG_INTERFACE = 5 }; /* changes with every change of this file; vgg/engines/native_interface.py has the same number */

enum { VGG_OK, VGG_NO_MEMORY, VGG_FAILED };
enum vgg_operation {
    VGG_CONVOLUTION,
    VGG_LRN,
    VGG_MAX_POOL,
    VGG_MEAN_POOL,
    VGG_L2_POOL,
    VGG_AVERAGE_POOL,
    VGG_GLOBAL_MAX_POOL,
    VGG_LINEAR,
    VGG_QUANTIZE,  /* floats, or integers of another scale, become 8-bit integers; the images if it is the first layer */
    VGG_DEQUANTIZE /* 8-bit integers become floats */
};
enum { VGG_COSINE, VGG_L1, VGG_L2, VGG_MOMENTS };
enum vgg_activation { VGG_NONE, VGG_RELU, VGG_LEAKY_RELU, VGG_ELU, VGG_GELU, VGG_GELU_TANH, VGG_SILU, VGG_TANH, VGG_SIGMOID };

typedef struct vgg_network vgg_network;

typedef struct {
    int32_t operation;  /* a vgg_operation; a convolution includes its ReLU */
    int32_t activation; /* of a linear layer: a vgg_activation */
    int32_t in, out;    /* channels; a linear layer has in * kernel * kernel inputs */
    int32_t kernel; /* 3 or 1; of the first linear layer, the side of its input map; of average pooling, that of its output */
    /* A linear layer's storage: float32, float16, bfloat16, int8, int4; bfloat16 of a convolution: its products. */
    int32_t kind;
    const void *weight; /* of a convolution: float32, or int8 if it has a scale, copied; of a linear layer: used in place */
    const float *bias;  /* copied */
    const float *scale; /* of int8 and int4: [out, inputs / group]; of a convolution: [out]; copied */
    int64_t group;      /* inputs that share a scale */
    double numbers[4];  /* of an LRN: size, alpha, beta, k; of an activation: its slope or factor */
    /* A convolution or linear layer whose input is 8-bit integers is computed in integers; its weight is int8 with a scale for
     * each output. Integers are unsigned, and mean (integer - zero point) * scale. */
    const int32_t *zero; /* zero points of such a weight: [out], or null for 0; copied */
    float output_scale;  /* of such a layer, of the head's pooling and of VGG_QUANTIZE; 0 for floats */
    int32_t output_zero; /* its zero point, from 0 to 255 */
} vgg_layer;

typedef struct {
    int32_t step;  /* index of a layer */
    float *values; /* receives the layer's output, [batch, channels, height, width] */
} vgg_output;

typedef struct {
    int32_t step;        /* index of a layer before the head */
    int32_t area[4];     /* of moments: top, left, bottom and right of the positions that count */
    const float *weight; /* of differences: of the channels */
    float *differences;  /* receives [pairs, height, width] */
    double *moments;     /* receives [pairs, 5, channels]: the sums of a, b, a * a, b * b, a * b */
} vgg_comparison;

/* The version of this interface and the sizes of its structs in bytes, by which a caller recognises another build. */
VGG_API void vgg_interface(int32_t *version, int32_t *layer_bytes, int32_t *output_bytes, int32_t *comparison_bytes);

/* The message of the calling thread's last error. */
VGG_API const char *vgg_error(void);

/* The name of an instruction set; of the best one available for "auto". Fails if it is unknown or not available. */
VGG_API int vgg_instructions(const char *name, const char **chosen);

/* A network without layers; `size` is the side of the images that it is optimised for. */
VGG_API int vgg_open(const char *instructions, int threads, int size, vgg_network **network);
VGG_API int vgg_add(vgg_network *network, const vgg_layer *layer);
VGG_API void vgg_close(vgg_network *network);

/* Runs a batch [batch, 3, height, width]. */
VGG_API int vgg_run(vgg_network *network, const float *data, int batch, int height, int width, const vgg_output *outputs,
                    int count);

/* Compares pairs of images of a batch by layer outputs: differences of one of the first three kinds, or moments. The layer
 * outputs of an image are computed once, and not at all if it is in no pair. */
VGG_API int vgg_compare(vgg_network *network, const float *data, int height, int width, int kind, const int32_t *pairs,
                        int pair_count, const vgg_comparison *layers, int count);

/* Seconds of each layer in the last run; a convolution's include the max pooling that is fused with it. */
VGG_API int vgg_times(vgg_network *network, double *seconds);

/* The machine's limits with a number of threads: multiply-adds per second in registers, bytes per second read from memory. */
VGG_API int vgg_peak(const char *instructions, int threads, double seconds, double *result);
VGG_API int vgg_bandwidth(const char *instructions, int threads, const float *memory, int64_t count, double *result);

#ifdef __cplusplus
}
#endif
#endif
