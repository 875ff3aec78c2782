/* csrc/delta.c - spans and frames of a delta: what stands around tokens and literals. */
#include "delta.h"

#include <string.h>

#include "bytes.h"
#include "log.h"

static const uint8_t magic[4] = {'N', 'V', 'Z', NOVA_DELTA_VERSION};

int nova_delta_read_span(const uint8_t *bytes, size_t n, nova_delta_span *out)
{
    nova_delta_span span;
    if (n < sizeof magic)
        return memcmp(bytes, magic, n < 3 ? n : 3) ? NOVA_DELTA_E_MAGIC : NOVA_DELTA_E_SHORT;
    if (memcmp(bytes, magic, 3))
        return NOVA_DELTA_E_MAGIC;
    if (bytes[3] != NOVA_DELTA_VERSION)
        return NOVA_DELTA_E_VERSION;
    nova_reader r = nova_reader_of(bytes + sizeof magic, n - sizeof magic);
    span.flags = nova_take_byte(&r);
    span.number = nova_take_number(&r);
    span.base_size = nova_take_number(&r);
    span.size = nova_take_number(&r);
    uint64_t frames_bytes = nova_take_number(&r);
    span.frames = nova_take(&r, frames_bytes);
    const uint8_t *tail = nova_take(&r, NOVA_DELTA_TAIL);
    if (!r.ok || span.flags & ~NOVA_DELTA_LAST)
        return NOVA_DELTA_E_SHORT;
    span.frames_bytes = (size_t)frames_bytes;
    memcpy(span.base_identity, tail, 16);
    memcpy(span.identity, tail + 16, 16);
    span.bytes = (size_t)(r.at - bytes);
    uint32_t crc = (uint32_t)nova_load_tail(tail + 32, 4);
    if (nova_crc32c(0, bytes, span.bytes - 4) != crc)
        return NOVA_DELTA_E_CHECKSUM;
    *out = span;
    return 0;
}

int nova_delta_read_frame(const nova_delta_span *span, size_t *at, nova_delta_frame *out)
{
    nova_delta_frame f;
    nova_reader r = nova_reader_of(span->frames + *at, span->frames_bytes - *at);
    f.methods = nova_take_byte(&r);
    f.pages = nova_take_number(&r);
    f.tokens_raw = nova_take_number(&r);
    uint64_t tokens_stored = nova_take_number(&r);
    f.literals_raw = nova_take_number(&r);
    uint64_t literals_stored = nova_take_number(&r);
    unsigned how_tokens = f.methods & 3, how_literals = f.methods >> 2 & 3;
    f.prefix_at = f.prefix_bytes = 0;
    if (how_literals == NOVA_PREFIXED) {
        f.prefix_at = nova_take_number(&r);
        f.prefix_bytes = nova_take_number(&r);
    }
    f.tokens = nova_take(&r, tokens_stored);
    f.literals = nova_take(&r, literals_stored);
    if (!r.ok || f.methods > 15 || how_tokens > NOVA_ZSTD || how_literals > NOVA_PREFIXED ||
        f.tokens_raw > NOVA_DELTA_TOKENS || f.literals_raw > NOVA_DELTA_LITERALS || !f.pages ||
        (how_tokens == NOVA_STORED && tokens_stored != f.tokens_raw) ||
        (how_literals == NOVA_STORED && literals_stored != f.literals_raw) || f.prefix_bytes > NOVA_DELTA_PREFIX ||
        f.prefix_at > span->base_size || f.prefix_bytes > span->base_size - f.prefix_at)
        return NOVA_DELTA_E_FRAME;
    f.tokens_stored = (size_t)tokens_stored;
    f.literals_stored = (size_t)literals_stored;
    *at = (size_t)(r.at - span->frames);
    *out = f;
    return 0;
}

size_t nova_delta_put_head(uint8_t *out, const nova_delta_span *span)
{
    uint8_t *at = out;
    memcpy(at, magic, sizeof magic);
    at += sizeof magic;
    *at++ = span->flags;
    at += nova_put_number(at, span->number);
    at += nova_put_number(at, span->base_size);
    at += nova_put_number(at, span->size);
    at += nova_put_number(at, span->frames_bytes);
    return (size_t)(at - out);
}

static void put_identity(uint8_t *out, nova_digest digest)
{
    nova_store64le(out, digest.lo);
    nova_store64le(out + 8, digest.hi);
}

void nova_delta_put_tail(uint8_t *out, nova_digest base_identity, nova_digest identity)
{
    put_identity(out, base_identity);
    put_identity(out + 16, identity);
}

size_t nova_delta_put_frame(uint8_t *out, const nova_delta_frame *f)
{
    uint8_t *at = out;
    *at++ = f->methods;
    at += nova_put_number(at, f->pages);
    at += nova_put_number(at, f->tokens_raw);
    at += nova_put_number(at, f->tokens_stored);
    at += nova_put_number(at, f->literals_raw);
    at += nova_put_number(at, f->literals_stored);
    if ((f->methods >> 2 & 3) == NOVA_PREFIXED) {
        at += nova_put_number(at, f->prefix_at);
        at += nova_put_number(at, f->prefix_bytes);
    }
    return (size_t)(at - out);
}
