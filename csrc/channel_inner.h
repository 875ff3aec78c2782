/* csrc/channel_inner.h - what channel.c and channel_out.c share. */
#pragma once
#include <string.h>

#include "channel.h"

static inline uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static inline void put32(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 24), p[1] = (uint8_t)(v >> 16), p[2] = (uint8_t)(v >> 8), p[3] = (uint8_t)v;
}

static inline void put64(uint8_t *p, uint64_t v)
{
    put32(p, (uint32_t)(v >> 32));
    put32(p + 4, (uint32_t)v);
}

static inline uint64_t get64(const uint8_t *p)
{
    return (uint64_t)get32(p) << 32 | get32(p + 4);
}

static inline void mac_begin(nova_mac *m, const uint8_t *head, size_t bytes)
{
    if (m->kind == NOVA_MAC_BLAKE3) {
        nova_blake3_begin(&m->hash, &m->mode);
        nova_blake3_add(&m->hash, head, NOVA_FRAME_SIGNED);
    } else if (m->kind == NOVA_MAC_FOREIGN) {
        m->begin(m->self, head, bytes);
    }
}

static inline void mac_add(nova_mac *m, const uint8_t *p, size_t n)
{
    if (m->kind == NOVA_MAC_BLAKE3)
        nova_blake3_add(&m->hash, p, n);
    else if (m->kind == NOVA_MAC_FOREIGN)
        m->add(m->self, p, n);
}

static inline void mac_end(nova_mac *m, uint8_t *mac)
{
    uint8_t whole[NOVA_BLAKE3_BYTES];
    if (m->kind == NOVA_MAC_BLAKE3) {
        nova_blake3_end(&m->hash, whole);
        memcpy(mac, whole, NOVA_FRAME_MAC);
    } else {
        m->end(m->self, mac);
    }
}
