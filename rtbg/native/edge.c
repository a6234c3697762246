/* The matte's edge at full size, in plain C: what `rtbg.native` calls. No library is used, not even C's own, and little of
   the stack.

   Built once for each depth (DEPTH 8: uint8_t samples, 16: uint16_t) and each set of instructions (ISA, a suffix) by
   `python -m rtbg.native.build`. A cell is a square of `side` pixels of a coarse grid over the picture (`rtbg.grid`);
   the last ones may hang over. Neighbouring cells of a row are worked on together, row of pixels by row of pixels, so
   that the compiler makes vectors of the inner loops. Floats are neither contracted nor reordered: every machine
   gives the same picture. */

#include <stdint.h>

#ifndef DEPTH
#define DEPTH 8
#endif
#ifndef ISA
#define ISA plain
#endif
#define JOIN3(a, b, c) a##_##b##_##c
#define JOIN(a, b, c) JOIN3(a, b, c)
#define NAME(name) JOIN(name, DEPTH, ISA)
#if DEPTH == 8
typedef uint8_t Sample;
#else
typedef uint16_t Sample;
#endif
#if defined(_WIN32)
#define PUBLIC __attribute__((dllexport))
#else
#define PUBLIC __attribute__((visibility("default")))
#endif
#define INLINE static inline __attribute__((always_inline))
#define RESTRICT __restrict

enum { LONGEST = 2048, BESIDE = 4 }; /* pixels of a row at a time; room on both sides of it */

typedef int64_t Int;

/* Memory that the caller lends for one call: too much for the stack of a thread on some systems. */
typedef struct {
    float before[LONGEST], own[LONGEST], after[LONGEST]; /* weights of a cell's pixels, see `between` */
    float cells[LONGEST + 2], first[LONGEST], second[LONGEST], sited[LONGEST], near[LONGEST];
    int32_t lines[LONGEST + 2 * BESIDE];
    uint32_t sum[LONGEST];
    uint8_t low[LONGEST], high[LONGEST];
} Room;

/* A plane, or values of a grid: `line` is in elements. */
typedef struct {
    void *at;
    Int line, width, height;
} Plane;

typedef struct {
    Room *room;
    Int side, columns, rows;     /* of the grid */
    const uint8_t *needed;       /* rows x columns: not 0 where something is to be done */
    Plane luma, alpha, before;   /* before: at 0 where there is no past; uint8 */
    const float *rise, *base;    /* rows x columns */
    Int least;
    uint8_t *lowest, *highest;   /* rows x columns: what the cells hold then */
    float *share;                /* and its mean, 0..1 */
} Follow;

typedef struct {
    Room *room;
    Int side, columns, rows;
    const uint8_t *needed;
    Plane alpha;                 /* uint8 */
    Plane picture[3], behind[3], out[3];
    const float *person[3], *apart[3]; /* rows x columns; 0: the camera's colours */
    Int across, down;            /* of chroma's subsampling */
    Int top;
} Paint;

typedef struct {
    Int side, columns, rows;
    const uint8_t *full;
    Plane picture[3], behind[3], out[3];
    Int across, down;
} Copy;

INLINE Int clamped(Int at, Int count) { return at < 0 ? 0 : at < count ? at : count - 1; }
INLINE Int smaller(Int a, Int b) { return a < b ? a : b; }
INLINE float within(float x, float top) { return x > 0 ? x < top ? x : top : 0; } /* NaN: 0 */
/* To the nearest whole number, halves to the even one, as IEEE 754 adds; for 0 to 2^22. */
INLINE float whole(float x) { return (x + 8388608.0f) - 8388608.0f; }

/* Weights of a pixel's cell and of those before and after it, for a pixel `at` of `size`. */
INLINE void between(Int at, Int size, float *before, float *own, float *after) {
    float x = ((float)at + 0.5f) / (float)size - 0.5f;
    *before = x < 0 ? -x : 0;
    *after = x > 0 ? x : 0;
    *own = 1 - *before - *after;
}

INLINE void weigh(Room *r, const Int side) {
    for (Int x = 0; x < side; x++)
        between(x, side, &r->before[x], &r->own[x], &r->after[x]);
}

/* One row of pixels (`line` of `high`) of values of the cells [left, left + count) of row y, bilinearly. */
INLINE void enlarge(const float *values, Int columns, Int rows, Int y, Int left, Int count, Int line, Int high,
                    Room *RESTRICT r, const Int side, float *RESTRICT out) {
    float up, here, down, *RESTRICT cells = r->cells;
    between(line, high, &up, &here, &down);
    const float *a = values + clamped(y - 1, rows) * columns, *b = values + y * columns,
                *c = values + clamped(y + 1, rows) * columns;
    for (Int k = -1; k <= count; k++) {
        Int x = clamped(left + k, columns);
        cells[k + 1] = up * a[x] + here * b[x] + down * c[x];
    }
    for (Int k = 0; k < count; k++) {
        float before = cells[k], own = cells[k + 1], after = cells[k + 2];
        for (Int x = 0; x < side; x++)
            out[k * side + x] = r->before[x] * before + r->own[x] * own + r->after[x] * after;
    }
}

/* The end of the run of needed cells that begins at `left`, of as many as go at a time. */
INLINE Int run(const uint8_t *needed, Int left, Int columns, Int side) {
    Int end = left, most = LONGEST / side;
    while (end < columns && needed[end] && end - left < most)
        end++;
    return end;
}

/* -- alpha + rise * luma + base, see `rtbg.native.edge.follow` -- */

INLINE void follow_run(const Follow *f, Int y, Int left, Int count, const Int side) {
    Room *r = f->room;
    float *RESTRICT rise = r->first, *RESTRICT base = r->second;
    uint8_t *RESTRICT low = r->low, *RESTRICT high = r->high;
    uint32_t *RESTRICT sum = r->sum;
    Int x0 = left * side, wide = smaller(count * side, f->luma.width - x0), tall = smaller(side, f->luma.height - y * side);
    Int from = x0 < 2 ? -x0 : -2, to = smaller(wide + 2, f->luma.width - x0);
    int32_t *RESTRICT at = r->lines + BESIDE;
    for (Int x = 0; x < wide; x++)
        low[x] = 255, high[x] = 0, sum[x] = 0;
    for (Int line = 0; line < tall; line++) {
        Int row = y * side + line;
        const Sample *luma[5];
        for (Int k = 0; k < 5; k++)
            luma[k] = (const Sample *)f->luma.at + clamped(row + k - 2, f->luma.height) * f->luma.line + x0;
        for (Int x = from; x < to; x++)
            at[x] = luma[0][x] + luma[4][x] + 4 * (luma[1][x] + luma[3][x]) + 6 * luma[2][x];
        for (Int x = -2; x < from; x++)
            at[x] = at[from];
        for (Int x = to; x < wide + 2; x++)
            at[x] = at[to - 1];
        enlarge(f->rise, f->columns, f->rows, y, left, count, line, side, r, side, rise);
        enlarge(f->base, f->columns, f->rows, y, left, count, line, side, r, side, base);
        uint8_t *RESTRICT alpha = (uint8_t *)f->alpha.at + row * f->alpha.line + x0;
        const uint8_t *before = f->before.at ? (const uint8_t *)f->before.at + row * f->before.line + x0 : 0;
        for (Int x = 0; x < wide; x++) {
            float calm = (float)(at[x - 2] + at[x + 2] + 4 * (at[x - 1] + at[x + 1]) + 6 * at[x]) * (1.0f / 256);
            alpha[x] = (uint8_t)(int32_t)whole(within((float)alpha[x] + (rise[x] * calm + base[x]), 255));
        }
        if (before)
            for (Int x = 0; x < wide; x++) {
                int32_t new = alpha[x], old = before[x], change = old - new;
                int keep = (change < 0 ? -change : change) <= (int32_t)f->least && new > 0 && new < 255;
                alpha[x] = (uint8_t)(keep ? old : new);
            }
        for (Int x = 0; x < wide; x++) {
            uint8_t a = alpha[x];
            low[x] = a < low[x] ? a : low[x];
            high[x] = a > high[x] ? a : high[x];
            sum[x] += a;
        }
    }
    for (Int k = 0; k < count; k++) {
        Int begin = k * side, end = smaller(begin + side, wide);
        uint8_t least = 255, most = 0;
        uint32_t total = 0;
        for (Int x = begin; x < end; x++) {
            least = low[x] < least ? low[x] : least;
            most = high[x] > most ? high[x] : most;
            total += sum[x];
        }
        Int cell = y * f->columns + left + k;
        f->lowest[cell] = least;
        f->highest[cell] = most;
        f->share[cell] = (float)total / ((float)((end - begin) * tall) * 255);
    }
}

INLINE void follow_all(const Follow *f, const Int side) {
    weigh(f->room, side);
    for (Int y = 0; y < f->rows; y++) {
        const uint8_t *needed = f->needed + y * f->columns;
        for (Int left = 0; left < f->columns; left++)
            if (needed[left]) {
                Int end = run(needed, left, f->columns, side);
                follow_run(f, y, left, end - left, side);
                left = end - 1;
            }
    }
}

PUBLIC void NAME(follow)(const Follow *f) {
    switch (f->side) { /* what the compiler knows it unrolls: 720p, 1080p, 4K */
    case 8: follow_all(f, 8); break;
    case 12: follow_all(f, 12); break;
    case 24: follow_all(f, 24); break;
    default: follow_all(f, f->side);
    }
}

/* -- the person's colours, and the blend, see `rtbg.native.edge.paint` -- */

/* Alpha at the samples of a row of chroma: sited as chroma is, and the mean of the pixels around. Codes. */
INLINE void alpha_of_chroma(const Plane *alpha, Int row, Int x0, Int wide, Int across, Int down, Room *r) {
    int32_t *RESTRICT at = r->lines + BESIDE;
    float *RESTRICT sited = r->sited, *RESTRICT near = r->near;
    Int left = x0 * across, from = left ? -1 : 0, to = smaller(wide * across, alpha->width - left);
    const uint8_t *a = (const uint8_t *)alpha->at + clamped(row * down, alpha->height) * alpha->line + left;
    const uint8_t *b = (const uint8_t *)alpha->at + clamped(row * down + down - 1, alpha->height) * alpha->line + left;
    for (Int x = from; x < to; x++)
        at[x] = a[x] + b[x];
    if (!from)
        at[-1] = at[0];
    for (Int x = to; x < wide * across; x++)
        at[x] = at[to - 1];
    if (across == 1)
        for (Int x = 0; x < wide; x++)
            sited[x] = near[x] = (float)at[x] * 0.5f;
    else
        for (Int x = 0; x < wide; x++) {
            sited[x] = (float)(at[2 * x - 1] + 2 * at[2 * x] + at[2 * x + 1]) * 0.125f;
            near[x] = (float)(at[2 * x] + at[2 * x + 1]) * 0.25f;
        }
}

INLINE void blend(const Sample *RESTRICT picture, const Sample *RESTRICT behind, const float *RESTRICT person,
                  const float *RESTRICT apart, const float *RESTRICT weight, const float *RESTRICT mean, float top,
                  Int wide, Sample *RESTRICT out, const int own, const int over) {
    for (Int x = 0; x < wide; x++) {
        float colour = (float)picture[x];
        if (own) {
            float part = mean[x] * (1.0f / 255), way = weight[x] > 0 ? 1 - part : 0;
            colour = within(colour + way * (person[x] - colour + part * apart[x]), top);
        }
        if (over) {
            float back = (float)behind[x];
            colour = back + weight[x] * (1.0f / 255) * (colour - back);
        }
        out[x] = (Sample)(int32_t)whole(colour);
    }
}

INLINE void paint_run(const Paint *p, Int plane, Int y, Int left, Int count, const Int wide_cell, const Int tall_cell) {
    Room *r = p->room;
    float *person = r->first, *apart = r->second;
    const Plane *picture = &p->picture[plane], *behind = &p->behind[plane], *out = &p->out[plane];
    Int x0 = left * wide_cell, wide = smaller(count * wide_cell, out->width - x0);
    Int tall = smaller(tall_cell, out->height - y * tall_cell);
    int own = p->person[plane] != 0, over = behind->at != 0, small = plane && p->across * p->down > 1;
    for (Int line = 0; line < tall; line++) {
        Int row = y * tall_cell + line;
        if (small)
            alpha_of_chroma(&p->alpha, row, x0, wide, p->across, p->down, r);
        else {
            const uint8_t *alpha = (const uint8_t *)p->alpha.at + row * p->alpha.line + x0;
            for (Int x = 0; x < wide; x++)
                r->sited[x] = (float)alpha[x];
        }
        if (own) {
            enlarge(p->person[plane], p->columns, p->rows, y, left, count, line, tall_cell, r, wide_cell, person);
            enlarge(p->apart[plane], p->columns, p->rows, y, left, count, line, tall_cell, r, wide_cell, apart);
        }
        const Sample *given = (const Sample *)picture->at + row * picture->line + x0;
        const Sample *back = over ? (const Sample *)behind->at + row * behind->line + x0 : 0;
        Sample *made = (Sample *)out->at + row * out->line + x0;
        const float *mean = small ? r->near : r->sited;
        float top = (float)p->top;
        if (own && over)
            blend(given, back, person, apart, r->sited, mean, top, wide, made, 1, 1);
        else if (own)
            blend(given, back, person, apart, r->sited, mean, top, wide, made, 1, 0);
        else if (over)
            blend(given, back, person, apart, r->sited, mean, top, wide, made, 0, 1);
    }
}

INLINE void paint_all(const Paint *p, Int plane, const Int wide_cell, const Int tall_cell) {
    weigh(p->room, wide_cell);
    for (Int y = 0; y < p->rows; y++) {
        const uint8_t *needed = p->needed + y * p->columns;
        for (Int left = 0; left < p->columns; left++)
            if (needed[left]) {
                Int end = run(needed, left, p->columns, p->side);
                paint_run(p, plane, y, left, end - left, wide_cell, tall_cell);
                left = end - 1;
            }
    }
}

PUBLIC void NAME(paint)(const Paint *p) {
    for (Int plane = 0; plane < 3; plane++) {
        Int wide = plane ? p->side / p->across : p->side, tall = plane ? p->side / p->down : p->side;
        switch (wide == tall ? wide : 0) {
        case 4: paint_all(p, plane, 4, 4); break;
        case 6: paint_all(p, plane, 6, 6); break;
        case 8: paint_all(p, plane, 8, 8); break;
        case 12: paint_all(p, plane, 12, 12); break;
        case 24: paint_all(p, plane, 24, 24); break;
        default: paint_all(p, plane, wide, tall);
        }
    }
}

/* -- copies of either side, see `rtbg.native.edge.copy` -- */

INLINE void copied(const Sample *RESTRICT from, Sample *RESTRICT to, Int count) {
    for (Int x = 0; x < count; x++)
        to[x] = from[x];
}

PUBLIC void NAME(copy)(const Copy *c) {
    for (Int plane = 0; plane < 3; plane++) {
        const Plane *picture = &c->picture[plane], *behind = &c->behind[plane], *out = &c->out[plane];
        Int wide = plane ? c->side / c->across : c->side, tall = plane ? c->side / c->down : c->side;
        for (Int row = 0; row < out->height; row++) {
            const uint8_t *full = c->full + row / tall * c->columns;
            const Sample *given = (const Sample *)picture->at + row * picture->line;
            const Sample *back = (const Sample *)behind->at + row * behind->line;
            Sample *made = (Sample *)out->at + row * out->line;
            for (Int left = 0; left < c->columns;) {
                Int end = left + 1;
                while (end < c->columns && !full[end] == !full[left])
                    end++;
                Int x = left * wide, count = smaller(end * wide, out->width) - x;
                copied((full[left] ? given : back) + x, made + x, count);
                left = end;
            }
        }
    }
}
