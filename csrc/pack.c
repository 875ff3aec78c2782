/* csrc/pack.c */
#include "pack.h"

#include <stdlib.h>
#include <string.h>

#define MATCH_MIN 4u
#define MATCH_MAX (MATCH_MIN + 14 + 255)
#define DISTANCE_MAX 65535u
#define HASH_BITS 15
#define TRIES 16 /* places looked at for a match */
#define WORTH 64 /* bytes: fewer are left as they are */
#define NONE UINT32_MAX

static uint32_t load32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

/* Of the four bytes, not of how this machine orders them: the output is the same everywhere. */
static uint32_t hash_of(const uint8_t *p)
{
    uint32_t v = (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
    return v * 2654435761u >> (32 - HASH_BITS);
}

static uint32_t common(const uint8_t *a, const uint8_t *b, uint32_t limit)
{
    uint32_t n = 0;
    while (n < limit && a[n] == b[n])
        n++;
    return n;
}

typedef struct {
    const uint8_t *in;
    uint32_t n, *head, *prev;
} finder;

static void remember(finder *f, uint32_t at)
{
    uint32_t h = hash_of(f->in + at);
    f->prev[at] = f->head[h], f->head[h] = at;
}

/* The longest match for `at`, the nearest of equals; 0 if none is long enough. */
static uint32_t match_at(const finder *f, uint32_t at, uint32_t *distance)
{
    uint32_t limit = f->n - at < MATCH_MAX ? f->n - at : MATCH_MAX, best = MATCH_MIN - 1;
    uint32_t from = limit < MATCH_MIN ? NONE : f->head[hash_of(f->in + at)];
    for (int i = 0; i < TRIES && from != NONE && at - from <= DISTANCE_MAX && best < limit; i++, from = f->prev[from])
        if (f->in[from + best] == f->in[at + best] && load32(f->in + from) == load32(f->in + at)) {
            uint32_t n = common(f->in + from, f->in + at, limit);
            if (n > best)
                best = n, *distance = at - from;
        }
    return best < MATCH_MIN ? 0 : best;
}

/* One sequence; NULL if it does not fit before `end`. */
static uint8_t *put(uint8_t *out, const uint8_t *end, const uint8_t *literals, uint32_t n, uint32_t match,
                    uint32_t distance)
{
    uint32_t more = match ? match - MATCH_MIN : 0;
    if ((size_t)(end - out) < 1 + n / 255 + 1 + n + 3)
        return NULL;
    *out++ = (uint8_t)((n < 15 ? n : 15) << 4 | (more < 15 ? more : 15));
    if (n >= 15) {
        uint32_t rest = n - 15;
        for (; rest >= 255; rest -= 255)
            *out++ = 255;
        *out++ = (uint8_t)rest;
    }
    memcpy(out, literals, n);
    out += n;
    if (match) {
        *out++ = (uint8_t)distance, *out++ = (uint8_t)(distance >> 8);
        if (more >= 15)
            *out++ = (uint8_t)(more - 15);
    }
    return out;
}

size_t nova_pack(const uint8_t *in, size_t n, uint8_t *out)
{
    finder f = {in, (uint32_t)n, NULL, NULL};
    uint8_t *p = out;
    uint32_t from = 0, at = 0;
    if (n < WORTH || n > INT32_MAX)
        return 0;
    f.head = malloc((sizeof *f.head << HASH_BITS) + n * sizeof *f.prev);
    if (!f.head)
        return 0;
    f.prev = f.head + (1u << HASH_BITS);
    memset(f.head, 0xff, sizeof *f.head << HASH_BITS);
    while (p && at + MATCH_MIN <= n) {
        uint32_t distance = 0, better = 0, length = match_at(&f, at, &distance);
        remember(&f, at);
        if (!length) {
            at++;
            continue;
        }
        /* A literal more, if what follows it then matches for longer. */
        uint32_t next = match_at(&f, at + 1, &better);
        if (next > length + 1) {
            at++;
            remember(&f, at);
            length = next, distance = better;
        }
        p = put(p, out + n, in + from, at - from, length, distance);
        for (uint32_t i = 1; i < length && at + i + MATCH_MIN <= n; i++)
            remember(&f, at + i);
        at += length, from = at;
    }
    if (p)
        p = put(p, out + n, in + from, (uint32_t)n - from, 0, 0);
    free(f.head);
    return p ? (size_t)(p - out) : 0;
}

int nova_unpack(const uint8_t *in, size_t n, uint8_t *out, size_t room)
{
    const uint8_t *end = in + n;
    uint8_t *p = out, *stop = out + room;
    while (in < end) {
        uint8_t token = *in++;
        size_t literals = token >> 4, match = token & 15, distance;
        if (literals == 15)
            for (uint8_t more = 255; more == 255; literals += more) {
                if (in == end)
                    return -1;
                more = *in++;
            }
        if (literals > (size_t)(end - in) || literals > (size_t)(stop - p))
            return -1;
        if (literals <= 16 && end - in >= 16 && stop - p >= 16)
            memcpy(p, in, 16);
        else
            memcpy(p, in, literals);
        in += literals, p += literals;
        if (in == end)
            return p == stop && !match ? 0 : -1;
        if (end - in < 2)
            return -1;
        distance = (size_t)in[0] | (size_t)in[1] << 8;
        in += 2;
        if (match == 15) {
            if (in == end)
                return -1;
            match += *in++;
        }
        match += MATCH_MIN;
        if (!distance || distance > (size_t)(p - out) || match > (size_t)(stop - p))
            return -1;
        const uint8_t *from = p - distance;
        if (distance >= 16 && (size_t)(stop - p) >= match + 16) {
            for (size_t i = 0; i < match; i += 16)
                memcpy(p + i, from + i, 16);
        } else {
            for (size_t i = 0; i < match; i++)
                p[i] = from[i];
        }
        p += match;
    }
    return -1;
}
