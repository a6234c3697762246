// One filter per channel with ReLU6 before and after, forward and backward: see depthwise.py, which compiles this.
//
// Maps are channels-last bfloat16 (N, H, W, C); filters float (K * K, C); C is a multiple of 16. Of a picture the last K
// rows, as floats with the border's zeros around them, stay in the processor's cache; sixteen channels at a time.
// z: what comes in, before ReLU6; y: what goes out, after ReLU6.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int L = 16;
typedef float F __attribute__((vector_size(4 * L)));
typedef uint32_t U __attribute__((vector_size(4 * L)));
typedef uint16_t B __attribute__((vector_size(2 * L)));

inline F load(const uint16_t *p) {
    B b;
    std::memcpy(&b, p, sizeof b);
    return (F)(__builtin_convertvector(b, U) << 16);
}

inline void store(uint16_t *p, F f) {  // rounded to nearest, halves to even
    U u = (U)f;
    B b = __builtin_convertvector((u + 0x7fff + ((u >> 16) & 1)) >> 16, B);
    std::memcpy(p, &b, sizeof b);
}

inline F relu6(F f) {
    const F zero = {}, six = zero + 6.0f;
    f = f < zero ? zero : f;  // not a number stays what it is, as elsewhere
    return six < f ? six : f;
}

inline F where(F value, F of) {  // ReLU6's slope: value where 0 < of < 6
    const F zero = {}, six = zero + 6.0f;
    F low = of <= zero ? zero : value;
    return of >= six ? zero : low;
}

struct Shape {
    int n, h, w, c, k, stride, before, ho, wo;  // before: zeros above and on the left
    int high() const { return (ho - 1) * stride + k; }  // of a picture with its border
    int wide() const { return (wo - 1) * stride + k; }
};

// Rows of a picture as floats, the last K of them: [row % K][place][channels].
struct Ring {
    int k, places, c;
    std::vector<F> kept;
    Ring(int k, int places, int c) : k(k), places(places), c(c / L), kept((size_t)k * places * (c / L)) {}
    F *row(int y) { return kept.data() + (size_t)(y % k) * places * c; }
};

// Row y of a picture with its border, after ReLU6.
void fill(const Shape &s, const uint16_t *z, int y, F *row) {
    const int c = s.c / L, from = y - s.before, end = std::min(s.wide(), s.before + s.w);
    if (from < 0 || from >= s.h) {
        std::fill(row, row + (size_t)s.wide() * c, F{});
        return;
    }
    std::fill(row, row + (size_t)s.before * c, F{});
    const uint16_t *line = z + (size_t)from * s.w * s.c;
    F *at = row + (size_t)s.before * c;
    for (size_t i = 0, count = (size_t)(end - s.before) * c; i < count; ++i) at[i] = relu6(load(line + i * L));
    std::fill(row + (size_t)end * c, row + (size_t)s.wide() * c, F{});
}

template <int K> void forward(const Shape &s, const uint16_t *z, const float *filter, const float *bias, uint16_t *y) {
    const int c = s.c / L;
    Ring x(K, s.wide(), s.c);
    for (int n = 0; n < s.n; ++n) {
        const uint16_t *in = z + (size_t)n * s.h * s.w * s.c;
        for (int oy = 0, next = 0; oy < s.ho; ++oy) {
            for (; next < oy * s.stride + K; ++next) fill(s, in, next, x.row(next));
            uint16_t *out = y + ((size_t)n * s.ho + oy) * s.wo * s.c;
            for (int b = 0; b < c; ++b) {
                F taps[K * K], start;
                for (int t = 0; t < K * K; ++t) std::memcpy(&taps[t], filter + (size_t)t * s.c + b * L, sizeof(F));
                std::memcpy(&start, bias + b * L, sizeof start);
                const F *rows[K];
                for (int i = 0; i < K; ++i) rows[i] = x.row(oy * s.stride + i) + b;
                for (int ox = 0; ox < s.wo; ++ox) {
                    const size_t at = (size_t)ox * s.stride * c;
                    F sum = start;
                    for (int i = 0; i < K; ++i)
                        for (int j = 0; j < K; ++j) sum += taps[i * K + j] * rows[i][at + j * c];
                    store(out + (size_t)ox * s.c + b * L, relu6(sum));
                }
            }
        }
    }
}

// From the slope of y: those of z, of the filter and of the bias.
template <int K>
void backward(const Shape &s, const uint16_t *z, const uint16_t *y, const uint16_t *dy, const float *filter,
              uint16_t *dz, float *dfilter, float *dbias) {
    // The slopes of y before its ReLU6, spread by the stride, zeros around: of these and the turned filter dz is made.
    const int c = s.c / L;
    Ring x(K, s.wide(), s.c), g(K, s.wide() + K - 1, s.c);
    std::fill(dfilter, dfilter + (size_t)K * K * s.c, 0.0f);
    std::fill(dbias, dbias + s.c, 0.0f);
    for (int n = 0; n < s.n; ++n) {
        const size_t in = (size_t)n * s.h * s.w * s.c, out = (size_t)n * s.ho * s.wo * s.c;
        for (int oy = 0, next = 0, made = 0; oy < s.ho; ++oy) {
            for (; next < oy * s.stride + K; ++next) fill(s, z + in, next, x.row(next));
            F *slopes = g.row(oy);
            const size_t line = out + (size_t)oy * s.wo * s.c;
            for (int ox = 0; ox < s.wo; ++ox)
                for (int b = 0; b < c; ++b) {
                    const size_t at = line + (size_t)ox * s.c + b * L;
                    slopes[(size_t)(ox * s.stride + K - 1) * c + b] = where(load(dy + at), load(y + at));
                }
            for (int b = 0; b < c; ++b) {
                F sums[K * K], sum;
                for (int t = 0; t < K * K; ++t) std::memcpy(&sums[t], dfilter + (size_t)t * s.c + b * L, sizeof(F));
                std::memcpy(&sum, dbias + b * L, sizeof sum);
                const F *rows[K];
                for (int i = 0; i < K; ++i) rows[i] = x.row(oy * s.stride + i) + b;
                for (int ox = 0; ox < s.wo; ++ox) {
                    const size_t at = (size_t)ox * s.stride * c;
                    const F slope = slopes[at + (size_t)(K - 1) * c + b];
                    sum += slope;
                    for (int i = 0; i < K; ++i)
                        for (int j = 0; j < K; ++j) sums[i * K + j] += slope * rows[i][at + j * c];
                }
                for (int t = 0; t < K * K; ++t) std::memcpy(dfilter + (size_t)t * s.c + b * L, &sums[t], sizeof(F));
                std::memcpy(dbias + b * L, &sum, sizeof sum);
            }
            // The rows of z that no later row of y looks at.
            const int ready = oy + 1 == s.ho ? s.before + s.h : (oy + 1) * s.stride;
            for (; made < ready; ++made) {
                const int iy = made - s.before;
                if (iy < 0 || iy >= s.h) continue;
                int which[K], count = 0;
                const F *from[K];
                for (int i = made % s.stride; i < K; i += s.stride) {
                    const int row = (made - i) / s.stride;
                    if (made < i || row >= s.ho) continue;
                    which[count] = i;
                    from[count++] = g.row(row);
                }
                const size_t at = in + (size_t)iy * s.w * s.c;
                for (int b = 0; b < c; ++b) {
                    F taps[K][K];
                    for (int i = 0; i < count; ++i)
                        for (int j = 0; j < K; ++j)
                            std::memcpy(&taps[i][j], filter + (size_t)(which[i] * K + j) * s.c + b * L, sizeof(F));
                    for (int ix = 0; ix < s.w; ++ix) {
                        const int px = ix + s.before;
                        F total = {};
                        if (px < s.wide()) {
                            const size_t place = (size_t)(px + K - 1) * c + b;
                            if (count == K)
                                for (int i = 0; i < K; ++i)
                                    for (int j = 0; j < K; ++j) total += taps[i][j] * from[i][place - j * c];
                            else
                                for (int i = 0; i < count; ++i)
                                    for (int j = 0; j < K; ++j) total += taps[i][j] * from[i][place - j * c];
                        }
                        store(dz + at + (size_t)ix * s.c + b * L, where(total, load(z + at + (size_t)ix * s.c + b * L)));
                    }
                }
            }
        }
    }
}

}  // namespace

extern "C" void depthwise_forward(const int *shape, const uint16_t *z, const float *filter, const float *bias,
                                  uint16_t *y) {
    Shape s;
    std::memcpy(&s, shape, sizeof s);
    s.k == 3 ? forward<3>(s, z, filter, bias, y) : forward<5>(s, z, filter, bias, y);
}

extern "C" void depthwise_backward(const int *shape, const uint16_t *z, const uint16_t *y, const uint16_t *dy,
                                   const float *filter, uint16_t *dz, float *dfilter, float *dbias) {
    Shape s;
    std::memcpy(&s, shape, sizeof s);
    s.k == 3 ? backward<3>(s, z, y, dy, filter, dz, dfilter, dbias) : backward<5>(s, z, y, dy, filter, dz, dfilter, dbias);
}
