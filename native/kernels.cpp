// The arithmetic, compiled once for each instruction set.
#include "kernels.hpp"

#include "product.hpp"
#include "simd.hpp"
#include "vgg.h"
#include "winograd.hpp"

namespace VGG_ISA {

using vgg::Filters;
using vgg::Finish;
using vgg::Matrix;
using vgg::Pixels;

// --- Winograd -----------------------------------------------------------------------------------------------------------

// `count` weights of an output channel from an index on, as floats.
inline void weights_of(const Filters &from, int channel, std::ptrdiff_t index, int count, float *to) {
    if (!from.scale) {
        std::memcpy(to, static_cast<const float *>(from.values) + index, count * sizeof(float));
        return;
    }
    const std::int8_t *values = static_cast<const std::int8_t *>(from.values) + index;
    for (int i = 0; i < count; ++i) to[i] = float(values[i]) * from.scale[channel];
}

template <int PAIRS> void winograd_weights(const Filters &from, int out, int in, int first, int last, float *to) {
    using W = Winograd<PAIRS>;
    constexpr int N = W::N;
    const int panels = (out + PANEL - 1) / PANEL;
    const std::ptrdiff_t position = std::ptrdiff_t(panels) * in * PANEL;
    for (int panel = first; panel < last; ++panel)
        for (int i = 0; i < in; ++i)
            for (int v = 0; v < VECTORS; ++v) {
                const int begin = panel * PANEL + v * LANES;
                float filters[9][LANES] = {};
                for (int lane = 0; lane < LANES && begin + lane < out; ++lane) {
                    float filter[9];
                    weights_of(from, begin + lane, (std::ptrdiff_t(begin + lane) * in + i) * 9, 9, filter);
                    for (int k = 0; k < 9; ++k) filters[k][lane] = filter[k];
                }
                wide half[3][N];
                for (int x = 0; x < 3; ++x) {
                    wide g[3], u[N];
                    for (int y = 0; y < 3; ++y) g[y] = __builtin_convertvector(load(filters[3 * y + x]), wide);
                    W::weight(g, u);
                    for (int y = 0; y < N; ++y) half[x][y] = u[y];
                }
                float *target = to + (std::ptrdiff_t(panel) * in + i) * PANEL + v * LANES;
                for (int y = 0; y < N; ++y) {
                    const wide g[3] = {half[0][y], half[1][y], half[2][y]};
                    wide u[N];
                    W::weight(g, u);
                    for (int x = 0; x < N; ++x) store(target + (y * N + x) * position, __builtin_convertvector(u[x], vec));
                }
            }
}

template <int PAIRS> void winograd_input(const float *from, std::ptrdiff_t row, std::ptrdiff_t pixel, int channels, float *to,
                                         std::ptrdiff_t position, std::ptrdiff_t stride) {
    using W = Winograd<PAIRS>;
    constexpr int M = W::M, N = W::N;
    for (int c = 0; c < channels; c += LANES) {
        vec half[N][N];
        for (int x = 0; x < N; ++x) {
            vec d[N], v[N];
#pragma GCC unroll 10
            for (int y = 0; y < N; ++y) {
                const float *place = from + y * row + x * pixel + c;
                d[y] = load(place);
                if (x >= N - M) __builtin_prefetch(place + M * pixel, 0, 2);
            }
            W::input(d, v);
#pragma GCC unroll 10
            for (int y = 0; y < N; ++y) half[y][x] = v[y];
        }
        for (int y = 0; y < N; ++y) {
            vec v[N];
            W::input(half[y], v);
            float *target = to + y * N * position + c / LANES * stride;
#pragma GCC unroll 10
            for (int x = 0; x < N; ++x) store(target + x * position, v[x]);
        }
    }
}

template <int PAIRS> void winograd_output(const float *from, std::ptrdiff_t position, const Finish &finish, int channels,
                                          int height, int width, float *to, std::ptrdiff_t row, float *pooled,
                                          std::ptrdiff_t pooled_row, std::ptrdiff_t pixel) {
    using W = Winograd<PAIRS>;
    constexpr int M = W::M, N = W::N;
    for (int c = 0; c < channels; c += LANES) {
        vec half[M][N];
        for (int x = 0; x < N; ++x) {
            vec m[N], y[M];
#pragma GCC unroll 10
            for (int i = 0; i < N; ++i) m[i] = load(from + (i * N + x) * position + c);
            W::output(m, y);
#pragma GCC unroll 8
            for (int i = 0; i < M; ++i) half[i][x] = y[i];
        }
        const vec offset = load(finish.bias + c);
        const auto write = [&](int i, const vec(&line)[M]) __attribute__((always_inline)) {
            float *target = to + i * row + c;
#pragma GCC unroll 8
            for (int x = 0; x < M; ++x)
                if (x < width) {
                    stream(target + x * pixel, relu(line[x] + offset));
                    fetch_to_write(target + (x + M) * pixel);
                }
        };
        for (int i = 0; i < height; i += pooled ? 2 : 1) {
            vec line[M];
            W::output(half[i], line);
            if (to) write(i, line);
            if (!pooled) continue;
            if (i + 1 >= height) break;
            vec below[M];
            W::output(half[i + 1], below);
            if (to) write(i + 1, below);
            float *target = pooled + (i / 2) * pooled_row + c;
#pragma GCC unroll 4
            for (int x = 0; x < M; x += 2)
                if (x + 1 < width) {
                    const vec best = largest(line[x], line[x + 1], below[x], below[x + 1]);
                    stream(target + (x / 2) * pixel, relu(best + offset));
                    fetch_to_write(target + (x / 2 + M / 2) * pixel);
                }
        }
    }
}

// --- Matrix products ----------------------------------------------------------------------------------------------------

void plain_weights(const Filters &from, int out, int k, float *to) {
    for (int begin = 0; begin < out; begin += PANEL)
        for (int i = 0; i < k; ++i)
            for (int lane = 0; lane < PANEL; ++lane, ++to) {
                *to = 0;
                if (begin + lane < out) weights_of(from, begin + lane, std::ptrdiff_t(begin + lane) * k + i, 1, to);
            }
}

void convolution(const Pixels &pixels, int count, int k, const float *panel, const float *bias, float *to,
                 std::ptrdiff_t to_stride) {
    product_of_pixels<Floats>(pixels, count, k, panel, [&](int row, const vec(&sums)[VECTORS]) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) stream(to + row * to_stride + v * LANES, relu(sums[v] + load(bias + v * LANES)));
    });
}

// --- Linear layers ------------------------------------------------------------------------------------------------------

// LANES weights of a row from an index on, as floats, without their scale.
template <vgg::Kind> inline vec weights_at(const void *row, std::int64_t index);

template <> inline vec weights_at<vgg::FLOAT32>(const void *row, std::int64_t index) {
    return load(static_cast<const float *>(row) + index);
}
template <> inline vec weights_at<vgg::FLOAT16>(const void *row, std::int64_t index) {
    const uvec bits = widened(static_cast<const std::uint16_t *>(row) + index);
    const uvec magnitude = (bits & 0x7fff) << 13, sign = (bits & 0x8000) << 16;
    const uvec special = uvec((bits & 0x7c00) == 0x7c00) & 0x7f800000;  // the exponent of infinity and NaN
    const vec value = vec(magnitude) * 0x1p112f;                        // changes the exponent's bias, also of subnormals
    return vec(uvec(value) | sign | special);
}
template <> inline vec weights_at<vgg::BFLOAT16>(const void *row, std::int64_t index) {
    return vec(widened(static_cast<const std::uint16_t *>(row) + index) << 16);
}
template <> inline vec weights_at<vgg::INT8>(const void *row, std::int64_t index) {
    return __builtin_convertvector(widened(static_cast<const std::int8_t *>(row) + index), vec);
}
template <> inline vec weights_at<vgg::INT4>(const void *row, std::int64_t index) {
    return halves_of_bytes(static_cast<const char *>(row) + index / 2);
}

constexpr int BITS[] = {32, 16, 16, 8, 4};  // of a weight of each kind
constexpr int AHEAD = 1024;                 // prefetch distance in bytes of a row, if the matrix is read once
constexpr int FEW = LANES > 8 ? 8 : 16;     // maximum number of input rows that are used directly; measured
constexpr int FEW_COLUMNS = 4096;           // columns of a few input rows that stay in the second-level cache
constexpr int SHARING = ROWS / 2;           // rows of the matrix that share loads of a few input rows, at most four at once
constexpr int COLUMNS = 256,
              CACHED = 65536;           // for many rows: columns that are processed at once, inputs that stay in the cache
constexpr int NARROW = ROWS * VECTORS;  // height of a block whose panel is one vector

// Fewer than LANES weights, from an index to the end of a row, padded with zeros.
template <vgg::Kind K> inline vec last_weights(const char *row, std::int64_t index, std::int64_t end) {
    char rest[LANES * 4] = {};
    std::memcpy(rest, row + index * BITS[K] / 8, ((end - index) * BITS[K] + 7) / 8);
    return weights_at<K>(rest, 0);
}

template <vgg::Kind> constexpr bool SCALED = false;
template <> constexpr bool SCALED<vgg::INT8> = true;
template <> constexpr bool SCALED<vgg::INT4> = true;

// The scales of a row, one for each group of columns.
inline const float *scales_of(const Matrix &matrix, std::int64_t row) {
    return matrix.scale + row * ((matrix.inputs + matrix.group - 1) / matrix.group);
}

// Adds R rows of the matrix times B rows of inputs, over some columns. The weights are prefetched into the second-level cache,
// as many lines at once as the first-level cache can wait for are too few: of the next R rows if B is more than one, since
// columns are then too few for hardware prefetching, else further along the rows.
template <vgg::Kind K, int R, int B> inline void add_dots(const Matrix &matrix, std::int64_t row, const float *inputs,
                                                          std::int64_t begin, std::int64_t end, float *to) {
    const char *rows[R];
    for (int r = 0; r < R; ++r) rows[r] = static_cast<const char *>(matrix.values) + (row + r) * (matrix.inputs * BITS[K] / 8);
    const float *scales[R];
    if constexpr (SCALED<K>)
        for (int r = 0; r < R; ++r) scales[r] = scales_of(matrix, row + r) + begin / matrix.group;
    vec totals[R][B] = {};
    std::int64_t group_end = SCALED<K> ? begin / matrix.group * matrix.group : 0;
    for (std::int64_t i = begin; i < end;) {  // one group at a time, if there are groups
        group_end = SCALED<K> ? group_end + matrix.group : end;
        const std::int64_t stop = group_end < end ? group_end : end;
        vec sums[R][B] = {};
        for (; i + LANES <= stop; i += LANES) {
            vec right[B];
#pragma GCC unroll 4
            for (int b = 0; b < B; ++b) right[b] = load(inputs + b * matrix.inputs + i);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const std::int64_t ahead = B > 1 ? (R * matrix.inputs + i) * BITS[K] / 8 : i * BITS[K] / 8 + AHEAD;
                __builtin_prefetch(rows[r] + ahead, 0, 2);
                const vec left = weights_at<K>(rows[r], i);
#pragma GCC unroll 4
                for (int b = 0; b < B; ++b) sums[r][b] += left * right[b];
            }
        }
        if (i < stop) {  // the rest, padded with zeros
            float right[B][LANES] = {};
            for (int b = 0; b < B; ++b) std::memcpy(right[b], inputs + b * matrix.inputs + i, (stop - i) * 4);
            for (int r = 0; r < R; ++r)
                for (int b = 0; b < B; ++b) sums[r][b] += last_weights<K>(rows[r], i, stop) * load(right[b]);
            i = stop;
        }
        for (int r = 0; r < R; ++r)
            for (int b = 0; b < B; ++b) totals[r][b] += SCALED<K> ? sums[r][b] * *scales[r] : sums[r][b];
        if constexpr (SCALED<K>)
            for (int r = 0; r < R; ++r) ++scales[r];
    }
    for (int r = 0; r < R; ++r) {
        float parts[B];
        if constexpr (B == 4)
            sum_each(totals[r], parts);
        else
            for (int b = 0; b < B; ++b) parts[b] = sum(totals[r][b]);
        for (int b = 0; b < B; ++b) to[b * matrix.outputs + row + r] += parts[b];
    }
}

constexpr int WORDS = 8 * LANES;  // 4-bit weights in a vector
constexpr int SORTED = 8192;      // inputs that are reordered at a time, and stay in the cache

// Adds R rows of 4-bit weights times one row of inputs. The inputs are reordered so that a vector has the inputs of the weights
// with the same index in their words. Columns and groups are whole vectors of words.
template <int R> inline void add_dots_of_words(const Matrix &matrix, std::int64_t row, const float *sorted, std::int64_t begin,
                                               std::int64_t end, float *to) {
    const char *rows[R];
    const float *scales[R];
    for (int r = 0; r < R; ++r) {
        rows[r] = static_cast<const char *>(matrix.values) + (row + r) * (matrix.inputs / 2);
        scales[r] = scales_of(matrix, row + r);
    }
    vec totals[R] = {};
    for (std::int64_t i = begin; i < end;) {
        const std::int64_t group = i / matrix.group, group_end = (group + 1) * matrix.group,
                           stop = group_end < end ? group_end : end;
        vec sums[R] = {};
        for (; i < stop; i += WORDS) {
            uvec words[R];
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                words[r] = uvec(load(reinterpret_cast<const float *>(rows[r] + i / 2)));
                __builtin_prefetch(rows[r] + (R * matrix.inputs + i) / 2);
            }
            const float *right = sorted + i - begin;
            [&]<int... I>(std::integer_sequence<int, I...>) {
                const auto add = [&]<int J>(std::integral_constant<int, J>) {
                    const vec inputs = load(right + J * LANES);
#pragma GCC unroll 4
                    for (int r = 0; r < R; ++r) sums[r] += halves_of_words<J>(words[r]) * inputs;
                };
                (add(std::integral_constant<int, I>()), ...);
            }(std::make_integer_sequence<int, 8>());
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) totals[r] += sums[r] * scales[r][group];
    }
    for (int r = 0; r < R; ++r) to[row + r] += sum(totals[r]);
}

void add_row_of_words(const Matrix &matrix, std::int64_t first, std::int64_t last, const float *inputs, float *to) {
    float sorted[SORTED];
    for (std::int64_t begin = 0; begin < matrix.inputs; begin += SORTED) {
        const std::int64_t end = begin + SORTED < matrix.inputs ? begin + SORTED : matrix.inputs;
        for (std::int64_t i = 0; i < end - begin; i += WORDS)
            for (int place = 0; place < 8; ++place)
                for (int lane = 0; lane < LANES; ++lane)
                    sorted[i + place * LANES + lane] = inputs[begin + i + lane * 8 + place];
        std::int64_t row = first;
        for (; row + 4 <= last; row += 4) add_dots_of_words<4>(matrix, row, sorted, begin, end, to);
        for (; row < last; ++row) add_dots_of_words<1>(matrix, row, sorted, begin, end, to);
    }
}

// A few rows of inputs. One row streams the matrix; several rows use as many columns at once as stay in the cache.
template <vgg::Kind K>
void add_rows(const Matrix &matrix, std::int64_t first, std::int64_t last, const float *inputs, std::int64_t count, float *to) {
    const auto add = [&]<int R>(std::integral_constant<int, R>, std::int64_t row, std::int64_t begin, std::int64_t end) {
        std::int64_t b = 0;
        const auto times = [&]<int B>(std::integral_constant<int, B>) {
            for (; b + B <= count; b += B)
                add_dots<K, R, B>(matrix, row, inputs + b * matrix.inputs, begin, end, to + b * matrix.outputs);
        };
        times(std::integral_constant<int, 4>());
        times(std::integral_constant<int, 2>());
        times(std::integral_constant<int, 1>());
    };
    const std::int64_t span = count == 1 ? matrix.inputs : FEW_COLUMNS;
    for (std::int64_t begin = 0; begin < matrix.inputs; begin += span) {
        const std::int64_t end = begin + span < matrix.inputs ? begin + span : matrix.inputs;
        std::int64_t row = first;
        if (count == 1)
            for (; row + 8 <= last; row += 8) add_dots<K, 8, 1>(matrix, row, inputs, begin, end, to);
        else
            for (; row + SHARING <= last; row += SHARING) add(std::integral_constant<int, SHARING>(), row, begin, end);
        for (; row < last; ++row) add(std::integral_constant<int, 1>(), row, begin, end);
    }
}

// Some columns of a row as floats.
template <vgg::Kind K>
inline void expand(const Matrix &matrix, std::int64_t row, std::int64_t begin, std::int64_t end, float *to) {
    const char *from = static_cast<const char *>(matrix.values) + row * (matrix.inputs * BITS[K] / 8);
    std::int64_t i = begin;
    for (; i + LANES <= end; i += LANES) store(to + i - begin, weights_at<K>(from, i));
    if (i < end) {
        float rest[LANES];
        store(rest, last_weights<K>(from, i, end));
        std::memcpy(to + i - begin, rest, (end - i) * sizeof(float));
    }
    if constexpr (SCALED<K>)
        for (i = begin; i < end;) {
            const std::int64_t group = i / matrix.group, group_end = (group + 1) * matrix.group;
            const float scale = scales_of(matrix, row)[group];
            for (const std::int64_t stop = group_end < end ? group_end : end; i < stop; ++i) to[i - begin] *= scale;
        }
}

// Many rows of inputs, in panels, with the matrix product of the convolutions. `sums` is [rows, stride].
template <vgg::Kind K> void add_panels(const Matrix &matrix, std::int64_t first, std::int64_t last, const float *panels,
                                       std::int64_t count, float *sums, std::int64_t stride) {
    float rows[NARROW * COLUMNS];
    const std::int64_t fitting = (CACHED / stride + COLUMNS - 1) / COLUMNS * COLUMNS;  // 0 if there are very many rows
    const std::int64_t span = fitting < COLUMNS ? COLUMNS : fitting;
    for (std::int64_t begin = 0; begin < matrix.inputs; begin += span)
        for (std::int64_t row = first; row < last; row += NARROW) {
            const int height = int(last - row < NARROW ? last - row : NARROW);
            const std::int64_t end = matrix.inputs - begin < span ? matrix.inputs : begin + span;
            for (std::int64_t column = begin; column < end; column += COLUMNS) {
                const int k = int(end - column < COLUMNS ? end - column : COLUMNS);
                for (int r = 0; r < height; ++r) expand<K>(matrix, row + r, column, column + k, rows + r * COLUMNS);
                const char *next =
                    static_cast<const char *>(matrix.values) + (row * matrix.inputs + column + COLUMNS) * BITS[K] / 8;
                const auto part = [&]<int R, int V>(std::integer_sequence<int, R, V>, int top, std::int64_t b) {
                    float *to = sums + (row - first + top) * stride + b;
                    block<Floats, R, V>(
                        k, panels + b * matrix.inputs + column * V * LANES,
                        [&](int i, int j) { return rows + top * COLUMNS + i + j; }, COLUMNS,
                        [&](int i) {
                            if (b == 0 && i * BITS[K] % 512 == 0)
                                for (int r = top; r < top + R; ++r)
                                    __builtin_prefetch(next + (r * matrix.inputs + i) * BITS[K] / 8, 0, 2);
                        },
                        [&](int r, const vec(&found)[V]) {
#pragma GCC unroll 4
                            for (int v = 0; v < V; ++v) {
                                float *place = to + r * stride + v * LANES;
                                store(place, load(place) + found[v]);
                            }
                        });
                };
                for (std::int64_t b = 0; b < count; b += PANEL) {
                    const bool narrow = count - b <= LANES;
                    int top = 0;
                    if (narrow && height == NARROW) part(std::integer_sequence<int, NARROW, 1>(), top, b), top = NARROW;
                    for (; !narrow && top + ROWS <= height; top += ROWS)
                        part(std::integer_sequence<int, ROWS, VECTORS>(), top, b);
                    for (; top < height; ++top)  // the last rows, one by one
                        if (narrow)
                            part(std::integer_sequence<int, 1, 1>(), top, b);
                        else
                            part(std::integer_sequence<int, 1, VECTORS>(), top, b);
                }
            }
        }
}

void panels(const float *rows, std::int64_t count, std::int64_t k, std::int64_t begin, std::int64_t end, float *to) {
    for (std::int64_t b = 0; b < count; b += PANEL) {
        const int filled = int(count - b < PANEL ? count - b : PANEL), width = filled <= LANES ? LANES : PANEL;
        for (int lane = 0; lane < width; ++lane)
            for (std::int64_t i = begin; i < end; ++i)
                to[b * k + i * width + lane] = lane < filled ? rows[(b + lane) * k + i] : 0;
    }
}

template <vgg::Kind K> void linear_of(const Matrix &matrix, std::int64_t first, std::int64_t last, const float *inputs,
                                      std::int64_t count, const float *bias, bool relu, float *sums, float *to) {
    for (std::int64_t b = 0; b < count; ++b)
        std::memcpy(to + b * matrix.outputs + first, bias + first, (last - first) * sizeof(float));
    if (K == vgg::INT4 && count == 1 && matrix.inputs % WORDS == 0 && matrix.group % WORDS == 0) {
        add_row_of_words(matrix, first, last, inputs, to);
    } else if (count <= FEW) {
        add_rows<K>(matrix, first, last, inputs, count, to);
    } else {
        const std::int64_t stride = (count + PANEL - 1) / PANEL * PANEL;
        sums += first * stride;
        std::memset(sums, 0, (last - first) * stride * sizeof(float));
        add_panels<K>(matrix, first, last, inputs, count, sums, stride);
        for (std::int64_t b = 0; b < count; ++b)
            for (std::int64_t row = first; row < last; ++row) to[b * matrix.outputs + row] += sums[(row - first) * stride + b];
    }
    if (relu)
        for (std::int64_t b = 0; b < count; ++b)
            for (std::int64_t row = first; row < last; ++row) {
                float &value = to[b * matrix.outputs + row];
                value = value < 0 ? value - value : value;  // NaN stays NaN, and -infinity is not lost
            }
}

void linear(const Matrix &matrix, std::int64_t first, std::int64_t last, const float *inputs, std::int64_t count,
            const float *bias, bool relu, float *sums, float *to) {
    switch (matrix.kind) {
        case vgg::FLOAT32: return linear_of<vgg::FLOAT32>(matrix, first, last, inputs, count, bias, relu, sums, to);
        case vgg::FLOAT16: return linear_of<vgg::FLOAT16>(matrix, first, last, inputs, count, bias, relu, sums, to);
        case vgg::BFLOAT16: return linear_of<vgg::BFLOAT16>(matrix, first, last, inputs, count, bias, relu, sums, to);
        case vgg::INT8: return linear_of<vgg::INT8>(matrix, first, last, inputs, count, bias, relu, sums, to);
        case vgg::INT4: return linear_of<vgg::INT4>(matrix, first, last, inputs, count, bias, relu, sums, to);
    }
}

// --- Comparisons --------------------------------------------------------------------------------------------------------

// One over the lengths of two times four pixels, from the sums of their squares.
inline void inverse_lengths(const vec (&left)[4], const vec (&right)[4], float (&to_left)[4], float (&to_right)[4]) {
    constexpr float EPSILON = 1e-10f;  // as in LPIPS
    float lengths[LANES > 8 ? LANES : 8] = {};
    sum_each(left, to_left);
    sum_each(right, to_right);
    std::memcpy(lengths, to_left, sizeof to_left);
    std::memcpy(lengths + 4, to_right, sizeof to_right);
    for (int i = 0; i < 8; i += LANES) store(lengths + i, 1.0f / (root(load(lengths + i)) + EPSILON));
    std::memcpy(to_left, lengths, sizeof to_left);
    std::memcpy(to_right, lengths + 4, sizeof to_right);
}

// Four pixels at a time, which share the sums over lanes.
template <int KIND>
void differences_of(const float *a, const float *b, const float *weight, int channels, int width, float *to) {
    for (int x = 0; x < width; x += 4) {
        const float *left[4], *right[4];
        for (int i = 0; i < 4; ++i) left[i] = a + (x + i) * std::ptrdiff_t(channels), right[i] = b + (left[i] - a);
        float scale[4] = {}, change[4] = {};
        if constexpr (KIND == VGG_COSINE) {
            vec squares_left[4] = {}, squares_right[4] = {};
            for (int c = 0; c < channels; c += LANES)
#pragma GCC unroll 4
                for (int i = 0; i < 4; ++i) {
                    const vec one = load(left[i] + c), other = load(right[i] + c);
                    squares_left[i] += one * one;
                    squares_right[i] += other * other;
                }
            float other[4];
            inverse_lengths(squares_left, squares_right, scale, other);
            for (int i = 0; i < 4; ++i) {
                // The longer one is on the left, so that no factor of a pixel is above one over its length.
                const bool swap = scale[i] > other[i];
                const float *longer = swap ? right[i] : left[i];
                right[i] = swap ? left[i] : right[i], left[i] = longer;
                change[i] = swap ? other[i] - scale[i] : scale[i] - other[i];
                scale[i] = swap ? other[i] : scale[i];
            }
        }
        vec sums[4] = {};
        for (int c = 0; c < channels; c += LANES) {
            const vec factor = load(weight + c);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const vec other = load(right[i] + c);
                vec apart = load(left[i] + c) - other;
                // left * scale - right * (scale - change), which is exactly 0 if both are equal.
                if constexpr (KIND == VGG_COSINE) apart = apart * scale[i] + other * change[i];
                if constexpr (KIND == VGG_L1)
                    sums[i] += factor * larger(apart, -apart);
                else
                    sums[i] += factor * apart * apart;
            }
        }
        float totals[4];
        sum_each(sums, totals);
        std::memcpy(to + x, totals, (width - x < 4 ? width - x : 4) * sizeof(float));
    }
}

void differences(int kind, const float *a, const float *b, const float *weight, int channels, int width, float *to) {
    switch (kind) {
        case VGG_COSINE: return differences_of<VGG_COSINE>(a, b, weight, channels, width, to);
        case VGG_L1: return differences_of<VGG_L1>(a, b, weight, channels, width, to);
        default: return differences_of<VGG_L2>(a, b, weight, channels, width, to);
    }
}

void moments(const float *a, const float *b, int channels, int width, double *sums) {
    constexpr int TOGETHER = 8, FEW = LANES / 2;  // pixels that are added before a sum is stored; channels
    const auto widened = [](const float *from) {
        narrow values;
        std::memcpy(&values, from, sizeof values);
        return __builtin_convertvector(values, doubles);
    };
    for (int x = 0; x < width; x += TOGETHER)
        for (int c = 0; c < channels; c += FEW) {
            doubles totals[5];
            for (int i = 0; i < 5; ++i) std::memcpy(&totals[i], sums + i * std::ptrdiff_t(channels) + c, sizeof(doubles));
            for (int pixel = x; pixel < width && pixel < x + TOGETHER; ++pixel) {
                const doubles left = widened(a + pixel * std::ptrdiff_t(channels) + c);
                const doubles right = widened(b + pixel * std::ptrdiff_t(channels) + c);
                totals[0] += left;
                totals[1] += right;
                totals[2] += left * left;
                totals[3] += right * right;
                totals[4] += left * right;
            }
            for (int i = 0; i < 5; ++i) std::memcpy(sums + i * std::ptrdiff_t(channels) + c, &totals[i], sizeof(doubles));
        }
}

// --- Pooling, measurements, the table ------------------------------------------------------------------------------------

void max_pool(const float *upper, std::ptrdiff_t row, int channels, int width, float *to) {
    for (int x = 0; x < width; ++x)
        for (int c = 0; c < channels; c += LANES) {
            const float *from = upper + 2 * x * std::ptrdiff_t(channels) + c;
            store(to + x * std::ptrdiff_t(channels) + c,
                  largest(load(from), load(from + channels), load(from + row), load(from + row + channels)));
        }
}

void mean_pool(const float *upper, std::ptrdiff_t row, int channels, int width, float *to) {
    for (int x = 0; x < width; ++x)
        for (int c = 0; c < channels; c += LANES) {
            const float *from = upper + 2 * x * std::ptrdiff_t(channels) + c;
            store(to + x * std::ptrdiff_t(channels) + c,
                  (load(from) + load(from + channels) + load(from + row) + load(from + row + channels)) * 0.25f);
        }
}

void l2_pool(const float *middle, std::ptrdiff_t row, int channels, int width, float *to) {
    constexpr float EPSILON = 1e-12f;
    for (int x = 0; x < width; ++x)
        for (int c = 0; c < channels; c += LANES) {
            const float *from = middle + 2 * x * std::ptrdiff_t(channels) + c;
            const auto column = [&](int across) {  // the squares of three rows
                const float *place = from + across * channels;
                const vec above = load(place - row), here = load(place), below = load(place + row);
                return above * above + here * here * 2.0f + below * below;
            };
            const vec sum = column(-1) + column(0) * 2.0f + column(1);
            store(to + x * std::ptrdiff_t(channels) + c, root(sum * 0.0625f + EPSILON));
        }
}

std::int64_t peak(std::int64_t rounds, float *result) {
    constexpr int CHAINS = 10;
    vec sums[CHAINS];
    for (int i = 0; i < CHAINS; ++i) sums[i] = splat(float(i) * *result);
    vec left = splat(1.0f + *result), right = splat(*result);
    for (std::int64_t n = 0; n < rounds; ++n) {
#pragma GCC unroll 10
        for (int i = 0; i < CHAINS; ++i) sums[i] = sums[i] * left + right;
    }
    vec total{};
    for (int i = 0; i < CHAINS; ++i) total += sums[i];
    *result = sum(total);
    return std::int64_t(CHAINS) * LANES;
}

float read(const float *from, std::int64_t count) {
    // Four streams, as in the linear layers, which keep more memory channels busy than one.
    constexpr int STREAMS = 4;
    vec sums[STREAMS][2] = {};
    const std::int64_t each = count / STREAMS;
    for (std::int64_t i = 0; i + 2 * LANES <= each; i += 2 * LANES)
#pragma GCC unroll 4
        for (int s = 0; s < STREAMS; ++s)
#pragma GCC unroll 2
            for (int v = 0; v < 2; ++v) sums[s][v] += load(from + s * each + i + v * LANES);
    vec total{};
    for (int s = 0; s < STREAMS; ++s) total += sums[s][0] + sums[s][1];
    return sum(total);
}

void weights_for(int tile, const Filters &from, int out, int in, int first, int last, float *to) {
    (tile == 8 ? winograd_weights<4> : winograd_weights<2>)(from, out, in, first, last, to);
}
void input_for(int tile, const float *from, std::ptrdiff_t row, std::ptrdiff_t pixel, int channels, float *to,
               std::ptrdiff_t position, std::ptrdiff_t stride) {
    (tile == 8 ? winograd_input<4> : winograd_input<2>)(from, row, pixel, channels, to, position, stride);
}
void output_for(int tile, const float *from, std::ptrdiff_t position, const Finish &finish, int channels, int height, int width,
                float *to, std::ptrdiff_t row, float *pooled, std::ptrdiff_t pooled_row, std::ptrdiff_t pixel) {
    const auto output = tile == 8 ? winograd_output<4> : winograd_output<2>;
    output(from, position, finish, channels, height, width, to, row, pooled, pooled_row, pixel);
}

#define VGG_TEXT_(name) #name
#define VGG_TEXT(name) VGG_TEXT_(name)

extern const vgg::Integers integers;
extern const vgg::Convolution bfloat16;

extern const vgg::Kernels table{VGG_TEXT(VGG_ISA),
                                ROWS,
                                PANEL,
                                LANES,
                                FEW,
                                {1, weights_for, input_for, product<Floats>, output_for},
                                &bfloat16,
                                &integers,
                                plain_weights,
                                convolution,
                                panels,
                                linear,
                                max_pool,
                                mean_pool,
                                l2_pool,
                                differences,
                                moments,
                                peak,
                                read};

}  // namespace VGG_ISA
