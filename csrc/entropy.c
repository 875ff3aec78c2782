/* csrc/entropy.c */
#define _GNU_SOURCE
#include "entropy.h"

#include <dlfcn.h>
#include <stdlib.h>
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

static const struct {
    const char *name;
    void **where;
} symbols[] = {
    {"ZSTD_versionNumber", (void **)&zstd.version},   {"ZSTD_isError", (void **)&zstd.is_error},
    {"ZSTD_createCCtx", (void **)&zstd.create_c},     {"ZSTD_createDCtx", (void **)&zstd.create_d},
    {"ZSTD_freeCCtx", (void **)&zstd.free_c},         {"ZSTD_freeDCtx", (void **)&zstd.free_d},
    {"ZSTD_CCtx_reset", (void **)&zstd.reset_c},      {"ZSTD_DCtx_reset", (void **)&zstd.reset_d},
    {"ZSTD_CCtx_setParameter", (void **)&zstd.set_c}, {"ZSTD_DCtx_setParameter", (void **)&zstd.set_d},
    {"ZSTD_CCtx_refPrefix", (void **)&zstd.prefix_c}, {"ZSTD_DCtx_refPrefix", (void **)&zstd.prefix_d},
    {"ZSTD_compress2", (void **)&zstd.compress},      {"ZSTD_decompressDCtx", (void **)&zstd.decompress},
};

static int load(void)
{
    const char *wish = getenv("NOVA_ZSTD");
    if (wish && !strcmp(wish, "off"))
        return 0;
    void *library = dlopen("libzstd.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return 0;
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        void *found = dlsym(library, symbols[i].name);
        if (!found)
            return 0; /* older than 1.4 */
        __atomic_store_n(symbols[i].where, found, __ATOMIC_RELAXED);
    }
    return 1;
}

unsigned nova_zstd_version(void)
{
    static signed char known = -1; /* racing threads find the same functions */
    signed char now = __atomic_load_n(&known, __ATOMIC_ACQUIRE);
    if (now < 0) {
        now = (signed char)load();
        __atomic_store_n(&known, now, __ATOMIC_RELEASE);
    }
    return now ? zstd.version() : 0;
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
