// Winograd's minimal filtering F(M x M, 3 x 3), Lavin & Gray, arXiv 1509.09308: an M x M tile of a 3x3 convolution needs
// (M + 2)^2 multiplications per channel instead of 9 M^2, after weights, inputs and outputs are transformed.
//
// The transforms are Toom-Cook's for the points 0, +-p for each p in Points<PAIRS>, and infinity; M = 2 PAIRS. Pairs of points
// share their even and odd parts. F(8x8) has large rounding errors with the usual points (1, 2, 4 and their inverses); with
// these, found by search, the logits of VGG-16 differ from float64 by 3e-6 of the largest.
//
// A tile's outputs depend on all of its inputs, so a NaN or an infinity makes the whole tile NaN.
#pragma once

#include "simd.hpp"

namespace VGG_ISA {

template <int PAIRS> constexpr double Points[PAIRS] = {};
template <> constexpr double Points<2>[2] = {2.0 / 3, 1.5};
template <> constexpr double Points<4>[4] = {0.4, 0.8, 1.25, 2.5};

template <int PAIRS> struct Winograd {
    static constexpr int M = 2 * PAIRS, N = M + 2;

    // q[j][i]: the coefficient of x^2i in the product of (x^2 - p^2) over all p but p_j; q[PAIRS]: over all p.
    struct Coefficients {
        double q[PAIRS + 1][PAIRS + 1];
        double power[PAIRS][M];     // p_j^i
        double inverse[PAIRS + 1];  // of the product of a point's distances from the other points; last: of point 0

        constexpr Coefficients() : q{}, power{}, inverse{} {
            for (int j = 0; j <= PAIRS; ++j) {
                q[j][0] = 1;
                int degree = 0;
                for (int k = 0; k < PAIRS; ++k) {
                    if (k == j) continue;
                    double square = Points<PAIRS>[k] * Points<PAIRS>[k];
                    for (int i = ++degree; i > 0; --i) q[j][i] = q[j][i - 1] - square * q[j][i];
                    q[j][0] *= -square;
                }
            }
            for (int j = 0; j < PAIRS; ++j) {
                double p = Points<PAIRS>[j], distances = 2 * p * p;
                for (int k = 0; k < PAIRS; ++k)
                    if (k != j) distances *= p * p - Points<PAIRS>[k] * Points<PAIRS>[k];
                inverse[j] = 1 / distances;
                power[j][0] = 1;
                for (int i = 1; i < M; ++i) power[j][i] = power[j][i - 1] * p;
            }
            inverse[PAIRS] = 1 / q[PAIRS][0];
        }
    };
    static constexpr Coefficients C{};

    // The order of transformed positions: 0, +p_0, -p_0, +p_1, ..., infinity.

    // N inputs of a row -> N positions: B^T d.
    static inline void input(const vec (&d)[N], vec (&v)[N]) {
        vec first = d[0] * float(C.q[PAIRS][0]), last = d[1] * float(C.q[PAIRS][0]);
#pragma GCC unroll 8
        for (int i = 1; i < PAIRS; ++i) {
            first += d[2 * i] * float(C.q[PAIRS][i]);
            last += d[2 * i + 1] * float(C.q[PAIRS][i]);
        }
        v[0] = first + d[M];
        v[N - 1] = last + d[M + 1];
#pragma GCC unroll 8
        for (int j = 0; j < PAIRS; ++j) {
            vec even = d[2] * float(C.q[j][0]), odd = d[1] * float(C.q[j][0]);
#pragma GCC unroll 8
            for (int i = 1; i < PAIRS - 1; ++i) {
                even += d[2 * i + 2] * float(C.q[j][i]);
                odd += d[2 * i + 1] * float(C.q[j][i]);
            }
            even += d[M];
            odd += d[M - 1];
            v[2 * j + 1] = even + odd * float(C.power[j][1]);
            v[2 * j + 2] = even - odd * float(C.power[j][1]);
        }
    }

    // N positions of a row -> M outputs: A^T m.
    static inline void output(const vec (&m)[N], vec (&y)[M]) {
        vec sums[PAIRS], differences[PAIRS];
#pragma GCC unroll 8
        for (int j = 0; j < PAIRS; ++j) {
            sums[j] = m[2 * j + 1] + m[2 * j + 2];
            differences[j] = m[2 * j + 1] - m[2 * j + 2];
        }
#pragma GCC unroll 8
        for (int i = 0; i < M; ++i) {
            vec total = i == 0 ? m[0] : i == M - 1 ? m[N - 1] : vec{};
#pragma GCC unroll 8
            for (int j = 0; j < PAIRS; ++j) total += (i % 2 ? differences[j] : sums[j]) * float(C.power[j][i]);
            y[i] = total;
        }
    }

    // Three weights of a row -> N positions: G g. In double precision, since it is done once.
    static inline void weight(const wide (&g)[3], wide (&u)[N]) {
        u[0] = g[0] * C.inverse[PAIRS];
        u[N - 1] = g[2];
#pragma GCC unroll 8
        for (int j = 0; j < PAIRS; ++j) {
            wide even = (g[0] + g[2] * (Points<PAIRS>[j] * Points<PAIRS>[j])) * C.inverse[j];
            wide odd = g[1] * (Points<PAIRS>[j] * C.inverse[j]);
            u[2 * j + 1] = even + odd;
            u[2 * j + 2] = even - odd;
        }
    }
};

}  // namespace VGG_ISA
