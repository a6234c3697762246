/* What is estimated in the cells of the coarse grid and in the small matte, in plain C: what `rtbg.native` calls for
   `rtbg.upsampling`, `rtbg.foreground` and `rtbg.smoothing`, which say what it is. Built once for
   each set of instructions (ISA), as `edge.c`. Beyond its borders a picture goes on mirrored around its last samples, as
   OpenCV has it by default. Every function is given `room`, so many floats as `rtbg.native` says beside it. */

#include <stdint.h>

#ifndef ISA
#define ISA plain
#endif
#define JOIN2(a, b) a##_##b
#define JOIN(a, b) JOIN2(a, b)
#define NAME(name) JOIN(name, ISA)
#if defined(_WIN32)
#define PUBLIC __attribute__((dllexport))
#else
#define PUBLIC __attribute__((visibility("default")))
#endif
#define INLINE static inline __attribute__((always_inline))
#define RESTRICT __restrict

typedef int64_t Int;

typedef struct {
    float *room;
    Int rows, columns, radius;
    const float *guide[3], *p; /* each `line` floats from row to row */
    Int guide_line[3], p_line;
    float luma_noise, chroma_noise;
    float *slope, *offset;     /* rows x columns */
} Fit;

typedef struct {
    float *room;
    Int rows, columns;
    const float *picture[3], *share;
    Int picture_line[3], share_line;
    float near, beside;        /* weights of a cell and of its neighbours, across and down */
    Int far;                   /* half-width of the wide window */
    float faint, hardly, unsure, sure;
    float *person[3], *apart[3];
    Int line;                  /* of the results */
} Colours;

typedef struct {
    float *room;
    Int rows, columns;
    const uint8_t *grey;
    const float *matte;
    float *mean, *reference;   /* changed in place */
    float *picture, *weight;   /* results */
    float still, astray, disagree[2], moved[2], times, noise, share;
} Smooth;

typedef struct {
    uint16_t *room;            /* 2 x width + 2 */
    const uint8_t *plane;
    Int line, width, height, side;
    uint8_t *half;             /* the plane at half its size, both sides being even; 0: not wanted */
    float *means;              /* of side x side samples; the last ones of what is there */
} Blocks;

INLINE Int mirrored(Int at, Int count) {
    if (count == 1)
        return 0;
    while (at < 0 || at >= count)
        at = at < 0 ? -at : 2 * (count - 1) - at;
    return at;
}

INLINE float absolute(float x) { return x < 0 ? -x : x; }
INLINE float ramp(float x, float low, float slope) {
    float y = (x - low) * slope;
    return y > 0 ? y < 1 ? y : 1 : 0;
}

/* `row` with `radius` samples more on both sides, in `wide`. */
INLINE void widened(const float *row, Int count, Int radius, float *RESTRICT wide) {
    for (Int x = 0; x < count; x++)
        wide[radius + x] = row[x];
    for (Int k = 1; k <= radius; k++) {
        wide[radius - k] = row[mirrored(-k, count)];
        wide[radius + count - 1 + k] = row[mirrored(count - 1 + k, count)];
    }
}

/* Sums of 2 * radius + 1 neighbours. */
INLINE void summed(const float *RESTRICT wide, Int count, const Int radius, float *RESTRICT out) {
    for (Int x = 0; x < count; x++) {
        float sum = wide[x];
        for (Int k = 1; k <= 2 * radius; k++)
            sum += wide[x + k];
        out[x] = sum;
    }
}

/* As sums of a row, which may be `out` itself. */
INLINE void summed_across(const float *row, Int count, Int radius, float *RESTRICT wide, float *out) {
    widened(row, count, radius, wide);
    switch (radius) { /* what the compiler knows it unrolls */
    case 1: summed(wide, count, 1, out); break;
    case 2: summed(wide, count, 2, out); break;
    case 3: summed(wide, count, 3, out); break;
    case 6: summed(wide, count, 6, out); break;
    default: summed(wide, count, radius, out);
    }
}

/* The sum of the rows around row y of a picture whose row k begins at first + k % kept * line, times `scale`. */
INLINE void summed_down(const float *first, Int line, Int kept, Int y, Int rows, Int radius, Int count, float scale,
                        float *RESTRICT out) {
    const float *middle = first + y % kept * line;
    for (Int x = 0; x < count; x++)
        out[x] = middle[x];
    for (Int k = 1; k <= radius; k++) {
        const float *a = first + mirrored(y - k, rows) % kept * line, *b = first + mirrored(y + k, rows) % kept * line;
        for (Int x = 0; x < count; x++)
            out[x] += a[x] + b[x];
    }
    for (Int x = 0; x < count; x++)
        out[x] *= scale;
}

/* -- the fit of the guided filter -- */

enum { MAPS = 13 };

/* One row: of the means of y u v p yp up vp yy yu yv uv uu vv to those of the slopes and the offset. */
INLINE void solved(const Fit *f, const float *RESTRICT means, Int n, float *RESTRICT out, Int apart) {
    for (Int x = 0; x < n; x++) {
        const float *m = means + x;
        float my = m[0], mu = m[n], mv = m[2 * n], mp = m[3 * n];
        float cy = m[4 * n] - my * mp, cu = m[5 * n] - mu * mp, cv = m[6 * n] - mv * mp;
        float yy = m[7 * n] - my * my + f->luma_noise;
        float yu = m[8 * n] - my * mu, yv = m[9 * n] - my * mv, uv = m[10 * n] - mu * mv;
        float uu = m[11 * n] - mu * mu + f->chroma_noise, vv = m[12 * n] - mv * mv + f->chroma_noise;
        /* The inverse by cofactors; with the noise on its diagonal the determinant stays well above 0. */
        float k11 = uu * vv - uv * uv, k12 = yv * uv - yu * vv, k13 = yu * uv - yv * uu;
        float k22 = yy * vv - yv * yv, k23 = yu * yv - yy * uv, k33 = yy * uu - yu * yu;
        float whole = yy * k11 + yu * k12 + yv * k13;
        float scale = 1 / (whole > 1e-12f ? whole : 1e-12f);
        float ay = (k11 * cy + k12 * cu + k13 * cv) * scale;
        float au = (k12 * cy + k22 * cu + k23 * cv) * scale;
        float av = (k13 * cy + k23 * cu + k33 * cv) * scale;
        out[x] = ay;
        out[apart + x] = au;
        out[2 * apart + x] = av;
        out[3 * apart + x] = mp - ay * my - au * mu - av * mv;
    }
}

PUBLIC void NAME(fit)(const Fit *f) {
    Int rows = f->rows, n = f->columns, r = f->radius, side = 2 * r + 1, size = rows * n;
    float *ring = f->room, *found = ring + side * MAPS * n, *means = found + 4 * size, *product = means + MAPS * n,
          *wide = product + n;
    float scale = 1.0f / (float)(side * side);
    for (Int t = 0; t < rows + r; t++) {
        if (t < rows) {
            float *sums = ring + t % side * MAPS * n;
            const float *a[4] = {f->guide[0] + t * f->guide_line[0], f->guide[1] + t * f->guide_line[1],
                                 f->guide[2] + t * f->guide_line[2], f->p + t * f->p_line};
            static const uint8_t pairs[9][2] = {{0, 3}, {1, 3}, {2, 3}, {0, 0}, {0, 1}, {0, 2}, {1, 2}, {1, 1}, {2, 2}};
            for (Int k = 0; k < 4; k++)
                summed_across(a[k], n, r, wide, sums + k * n);
            for (Int k = 0; k < 9; k++) {
                const float *one = a[pairs[k][0]], *other = a[pairs[k][1]];
                for (Int x = 0; x < n; x++)
                    product[x] = one[x] * other[x];
                summed_across(product, n, r, wide, sums + (4 + k) * n);
            }
        }
        Int y = t - r;
        if (y < 0)
            continue;
        summed_down(ring, MAPS * n, side, y, rows, r, MAPS * n, scale, means);
        solved(f, means, n, found + y * n, size);
        for (Int k = 0; k < 4; k++) {
            float *row = found + k * size + y * n;
            summed_across(row, n, r, wide, row);
        }
    }
    for (Int y = 0; y < rows; y++) {
        float *au = means, *av = means + n, *offset = f->offset + y * n;
        summed_down(found, n, rows, y, rows, r, n, scale, f->slope + y * n);
        summed_down(found + size, n, rows, y, rows, r, n, scale, au);
        summed_down(found + 2 * size, n, rows, y, rows, r, n, scale, av);
        summed_down(found + 3 * size, n, rows, y, rows, r, n, scale, offset);
        const float *u = f->guide[1] + y * f->guide_line[1], *v = f->guide[2] + y * f->guide_line[2];
        for (Int x = 0; x < n; x++)
            offset[x] += au[x] * u[x] + av[x] * v[x];
    }
}

/* -- the colours of person and background around each cell -- */

/* `map`, weighted in the window of three cells, and where `far` faintly in the wide one, plus `rest`; in place. */
INLINE void gathered(const Colours *c, float *RESTRICT map, float *RESTRICT near, float *RESTRICT far,
                     float *RESTRICT wide, float *RESTRICT line, float rest, const int wider) {
    Int n = c->columns;
    float scale = c->faint / (float)((2 * c->far + 1) * (2 * c->far + 1));
    for (Int y = 0; y < c->rows; y++) {
        widened(map + y * n, n, 1, wide);
        for (Int x = 0; x < n; x++)
            near[y * n + x] = c->near * wide[x + 1] + c->beside * (wide[x] + wide[x + 2]);
        if (wider)
            summed_across(map + y * n, n, c->far, wide, far + y * n);
    }
    for (Int y = 0; y < c->rows; y++) {
        const float *here = near + y * n, *a = near + mirrored(y - 1, c->rows) * n, *b = near + mirrored(y + 1, c->rows) * n;
        float *out = map + y * n;
        if (wider)
            summed_down(far, n, c->rows, y, c->rows, c->far, n, scale, line);
        for (Int x = 0; x < n; x++)
            out[x] = c->near * here[x] + c->beside * (a[x] + b[x]) + (wider ? line[x] + rest : 0);
    }
}

PUBLIC void NAME(colours)(const Colours *c) {
    Int n = c->columns, size = c->rows * n;
    float *side[2] = {c->room, c->room + 4 * size}, *near = c->room + 8 * size, *far = near + size, *wide = far + size,
          *line = wide + n + 2 * c->far;
    float slope = 1 / (c->sure - c->unsure);
    for (Int s = 0; s < 2; s++) { /* first from the cells that are surely the one or the other */
        double sums[4] = {0, 0, 0, 0};
        for (Int y = 0; y < c->rows; y++) {
            const float *share = c->share + y * c->share_line;
            float *weight = side[s] + 3 * size + y * n, total = 0;
            for (Int x = 0; x < n; x++) {
                float own = s ? 1 - share[x] : share[x];
                weight[x] = own * c->hardly + ramp(own, c->unsure, slope);
            }
            for (Int x = 0; x < n; x++)
                total += weight[x];
            sums[3] += total;
            for (Int k = 0; k < 3; k++) {
                const float *picture = c->picture[k] + y * c->picture_line[k];
                float *out = side[s] + k * size + y * n;
                total = 0;
                for (Int x = 0; x < n; x++)
                    out[x] = picture[x] * weight[x];
                for (Int x = 0; x < n; x++)
                    total += out[x];
                sums[k] += total;
            }
        }
        for (Int k = 0; k < 4; k++) {
            float rest = (float)(c->faint * c->faint * c->hardly * sums[k] / (double)size + 1e-30);
            gathered(c, side[s] + k * size, near, far, wide, line, rest, 1);
        }
        float *weight = side[s] + 3 * size;
        for (Int k = 0; k < 3; k++) {
            float *map = side[s] + k * size;
            for (Int x = 0; x < size; x++)
                map[x] /= weight[x];
        }
    }
    float *a = side[0], *b = side[1], *mine = side[0] + 3 * size, *other = side[1] + 3 * size;
    for (Int y = 0; y < c->rows; y++) { /* then every cell's own colour is corrected by that... */
        const float *share = c->share + y * c->share_line;
        for (Int x = 0; x < n; x++) {
            mine[y * n + x] = share[x] + 1e-4f;
            other[y * n + x] = 1 - share[x] + 1e-4f;
        }
        for (Int k = 0; k < 3; k++) {
            const float *picture = c->picture[k] + y * c->picture_line[k];
            float *p = a + k * size + y * n, *q = b + k * size + y * n;
            for (Int x = 0; x < n; x++) {
                float one = share[x], two = 1 - one, person = p[x], room = q[x];
                p[x] = (person + one * (picture[x] - (room + one * (person - room)))) * (one + 1e-4f);
                q[x] = (room + two * (picture[x] - (person + two * (room - person)))) * (two + 1e-4f);
            }
        }
    }
    for (Int s = 0; s < 2; s++) /* ... and averaged with its neighbours' */
        for (Int k = 0; k < 4; k++)
            gathered(c, side[s] + k * size, near, far, wide, line, 0, 0);
    for (Int k = 0; k < 3; k++)
        for (Int y = 0; y < c->rows; y++) {
            float *person = c->person[k] + y * c->line, *apart = c->apart[k] + y * c->line;
            const float *p = a + k * size + y * n, *q = b + k * size + y * n, *v = mine + y * n, *w = other + y * n;
            for (Int x = 0; x < n; x++) {
                person[x] = p[x] / v[x];
                apart[x] = person[x] - q[x] / w[x];
            }
        }
}

/* -- smoothing in time -- */

/* The value that would be at place k were they in order (Hoare 1961, "Find"); they change places. */
INLINE float chosen(float *values, Int count, Int k) {
    Int low = 0, high = count - 1;
    while (low < high) {
        float pivot = values[(low + high) / 2];
        Int i = low, j = high;
        while (i <= j) {
            while (values[i] < pivot)
                i++;
            while (values[j] > pivot)
                j--;
            if (i <= j) {
                float kept = values[i];
                values[i++] = values[j];
                values[j--] = kept;
            }
        }
        if (k <= j)
            high = j;
        else if (k >= i)
            low = i;
        else
            break;
    }
    return values[k];
}

PUBLIC void NAME(smooth)(const Smooth *s) {
    Int rows = s->rows, n = s->columns, size = rows * n, count = 0;
    float *sums = s->room, *line = sums + size, *wide = line + n, *some = wide + n + 4;
    for (Int y = 0; y < rows; y++) {
        for (Int x = 0; x < n; x++)
            line[x] = (float)s->grey[y * n + x];
        summed_across(line, n, 1, wide, sums + y * n);
    }
    for (Int y = 0; y < rows; y++)
        summed_down(sums, n, rows, y, rows, 1, n, 1.0f / 9, s->picture + y * n);
    for (Int y = 0; y < rows; y++) {
        for (Int x = 0; x < n; x++)
            line[x] = absolute(s->picture[y * n + x] - s->reference[y * n + x]);
        summed_across(line, n, 2, wide, sums + y * n);
    }
    for (Int y = 0; y < rows; y++) {
        summed_down(sums, n, rows, y, rows, 2, n, 1.0f / 25, s->weight + y * n);
        if (y % 4 == 0)
            for (Int x = 0; x < n; x += 4)
                some[count++] = s->weight[y * n + x];
    }
    float noise = chosen(some, count, count / 2);
    float off = s->times * (noise < s->noise ? noise : s->noise) + s->moved[0];
    float moving = 1 / (s->moved[1] - s->moved[0]), doubt = 1 / (s->disagree[1] - s->disagree[0]), share = s->share;
    for (Int x = 0; x < size; x++) {
        float change = s->matte[x] - s->mean[x];
        float weight = ramp(absolute(change), s->disagree[0], doubt) * (s->astray - s->still) + s->still;
        float moved = ramp(s->weight[x], off, moving);
        weight = moved > weight ? moved : weight;
        s->weight[x] = weight;
        s->mean[x] += change * weight;
        s->reference[x] += (s->picture[x] - s->reference[x]) * share;
    }
}

/* -- means of blocks of a plane, and the plane at half its size, in one pass over it -- */

PUBLIC void NAME(blocks)(const Blocks *b) {
    Int width = b->width, side = b->side, columns = (width + side - 1) / side;
    uint16_t *RESTRICT sums = b->room, *RESTRICT pair = b->room + width + 1;
    for (Int top = 0, row = 0; top < b->height; top += side, row++) {
        Int bottom = top + side < b->height ? top + side : b->height;
        for (Int x = 0; x < width; x++)
            sums[x] = 0;
        for (Int y = top; y < bottom; y += 2) {
            const uint8_t *one = b->plane + y * b->line, *two = one + b->line;
            if (y + 1 < bottom)
                for (Int x = 0; x < width; x++)
                    pair[x] = (uint16_t)(one[x] + two[x]);
            else
                for (Int x = 0; x < width; x++)
                    pair[x] = one[x];
            for (Int x = 0; x < width; x++)
                sums[x] = (uint16_t)(sums[x] + pair[x]);
            if (b->half) {
                uint8_t *RESTRICT half = b->half + y / 2 * (width / 2);
                for (Int x = 0; x < width / 2; x++)
                    half[x] = (uint8_t)((pair[2 * x] + pair[2 * x + 1] + 2) >> 2);
            }
        }
        float *means = b->means + row * columns;
        for (Int k = 0; k < columns; k++) {
            Int left = k * side, right = left + side < width ? left + side : width;
            uint32_t sum = 0;
            for (Int x = left; x < right; x++)
                sum += sums[x];
            means[k] = (float)sum / (float)((right - left) * (bottom - top));
        }
    }
}
