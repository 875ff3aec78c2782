/* csrc/entropy.c */
#include "entropy.h"

#include <string.h>

/* Numbers of zstd's stable interface (RFC 8878 has the format). */
enum { LEVEL = 100, WINDOW_LOG = 101, LONG_DISTANCE = 160, CONTENT_SIZE_FLAG = 200, WINDOW_LOG_MAX = 100 };
enum { RESET_SESSION_AND_PARAMETERS = 3, WINDOW_LOG_LEAST = 10, WINDOW_LOG_MOST = 27 };

static struct {
    unsigned (*version)(void);
    unsigned (*is_error)(size_t);
    nova_zstd_cctx *(*create_c)(void);
    nova_zstd_dctx *(*create_d)(void);
    size_t (*free_c)(nova_zstd_cctx *);
    size_t (*free_d)(nova_zstd_dctx *);
    size_t (*reset_c)(nova_zstd_cctx *, int);
    size_t (*reset_d)(nova_zstd_dctx *, int);
    size_t (*set_c)(nova_zstd_cctx *, int, int);
    size_t (*set_d)(nova_zstd_dctx *, int, int);
    size_t (*prefix_c)(nova_zstd_cctx *, const void *, size_t);
    size_t (*prefix_d)(nova_zstd_dctx *, const void *, size_t);
    size_t (*compress)(nova_zstd_cctx *, void *, size_t, const void *, size_t);
    size_t (*decompress)(nova_zstd_dctx *, void *, size_t, const void *, size_t);
} zstd;

_Static_assert(sizeof zstd == NOVA_ZSTD_FUNCTIONS * sizeof(void *), "one field for each name");

const char *const nova_zstd_names[NOVA_ZSTD_FUNCTIONS] = {
    "ZSTD_versionNumber",  "ZSTD_isError",        "ZSTD_createCCtx", "ZSTD_createDCtx",        "ZSTD_freeCCtx",
    "ZSTD_freeDCtx",       "ZSTD_CCtx_reset",     "ZSTD_DCtx_reset", "ZSTD_CCtx_setParameter", "ZSTD_DCtx_setParameter",
    "ZSTD_CCtx_refPrefix", "ZSTD_DCtx_refPrefix", "ZSTD_compress2",  "ZSTD_decompressDCtx",
};

void nova_zstd_bind(void *const functions[NOVA_ZSTD_FUNCTIONS])
{
    /* The fields of `zstd` are these functions in this order; a pointer to a function has no other way from void. */
    memcpy(&zstd, functions, sizeof zstd);
}

unsigned nova_zstd_version(void)
{
    return zstd.version ? zstd.version() : 0;
}

nova_zstd_cctx *nova_zstd_compressor(void)
{
    return nova_zstd_version() ? zstd.create_c() : NULL;
}

nova_zstd_dctx *nova_zstd_decompressor(void)
{
    return nova_zstd_version() ? zstd.create_d() : NULL;
}

void nova_zstd_compressor_free(nova_zstd_cctx *c)
{
    if (c)
        zstd.free_c(c);
}

void nova_zstd_decompressor_free(nova_zstd_dctx *d)
{
    if (d)
        zstd.free_d(d);
}

static int window_for(size_t n)
{
    int log = WINDOW_LOG_LEAST;
    while (log < WINDOW_LOG_MOST && (size_t)1 << log < n)
        log++;
    return log;
}

size_t nova_zstd_compress(nova_zstd_cctx *c, int level, const void *prefix, size_t prefix_bytes, const void *bytes,
                          size_t n, void *out, size_t room)
{
    zstd.reset_c(c, RESET_SESSION_AND_PARAMETERS);
    zstd.set_c(c, LEVEL, level);
    /* The sizes stand in the frame of the delta. */
    zstd.set_c(c, CONTENT_SIZE_FLAG, 0);
    if (prefix) {
        zstd.set_c(c, WINDOW_LOG, window_for(prefix_bytes + n));
        zstd.set_c(c, LONG_DISTANCE, 1);
        if (zstd.is_error(zstd.prefix_c(c, prefix, prefix_bytes)))
            return 0;
    }
    size_t used = zstd.compress(c, out, room, bytes, n);
    return zstd.is_error(used) ? 0 : used;
}

int nova_zstd_decompress(nova_zstd_dctx *d, const void *prefix, size_t prefix_bytes, const void *bytes, size_t stored,
                         void *out, size_t n)
{
    zstd.reset_d(d, RESET_SESSION_AND_PARAMETERS);
    zstd.set_d(d, WINDOW_LOG_MAX, WINDOW_LOG_MOST);
    if (prefix && zstd.is_error(zstd.prefix_d(d, prefix, prefix_bytes)))
        return 0;
    return zstd.decompress(d, out, n, bytes, stored) == n;
}
