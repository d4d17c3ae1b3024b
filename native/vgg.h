/* The engine's C interface. Functions that return an int give 0, or VGG_NO_MEMORY. Nothing is checked here that its only
 * caller, vgg/engines/native.py, has checked: shapes, counts, indices. */
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

enum { VGG_NO_MEMORY = 1 };
enum { VGG_CONVOLUTION, VGG_LRN, VGG_MAX_POOL, VGG_AVERAGE_POOL, VGG_LINEAR };

typedef struct vgg_network vgg_network;

typedef struct {
    int32_t operation;    /* one of the above; a convolution is followed by a ReLU */
    int32_t relu;         /* of a linear layer */
    int32_t in, out;      /* channels; a linear layer's inputs are in * kernel * kernel */
    int32_t kernel;       /* 3 or 1; of the first linear layer, the side of the map that it was built for */
    int32_t kind;         /* of a linear layer's numbers: float32, float16, bfloat16, int8, int4 */
    const void *weight;   /* a convolution's are float32, or int8 where it has a scale, and copied; a linear layer's are used
                             in place */
    const float *bias;    /* copied */
    const float *scale;   /* of int8 and int4, [out, inputs / group], of a convolution [out]; copied */
    int64_t group;
    double lrn[4];        /* size, alpha, beta, k */
} vgg_layer;

typedef struct {
    int32_t step;         /* the index of a layer */
    float *values;        /* where its values go: [batch, channels, height, width] */
} vgg_output;

/* The instruction set that `name` stands for here ("auto": the best one tested), or NULL where this processor lacks it. */
VGG_API const char *vgg_instructions(const char *name);

/* A network without layers; `size` is the side of the pictures it is meant for. NULL: no memory. */
VGG_API vgg_network *vgg_open(const char *instructions, int threads, int size);
VGG_API int vgg_add(vgg_network *network, const vgg_layer *layer);
VGG_API void vgg_close(vgg_network *network);

/* Runs a batch [batch, 3, height, width]; one call at a time, others wait. */
VGG_API int vgg_run(vgg_network *network, const float *data, int batch, int height, int width, const vgg_output *outputs,
                    int count);

/* Seconds that each layer took in the last run; a convolution's pooling counts as its own. */
VGG_API void vgg_times(const vgg_network *network, double *seconds);

/* The machine's limits: multiply-adds a second in registers, bytes a second read from memory, with that many threads. */
VGG_API double vgg_peak(const char *instructions, int threads, double seconds);
VGG_API double vgg_bandwidth(const char *instructions, int threads, const float *memory, int64_t count);

#ifdef __cplusplus
}
#endif
#endif
