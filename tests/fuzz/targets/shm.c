/* tests/fuzz/targets/shm.c - one end of two rings, while a stranger writes what it likes into the shared memory.
 *
 * Each look at a word that the stranger may write finds what the input says, also if it was looked at just before: to
 * believe a second look is found out as an overrun or as a broken fact. Whatever the input, parts lie within their ring,
 * our own positions move by what was put and taken only, a call looks once, and an error stays one. */
#define _GNU_SOURCE
#include <stdatomic.h>

#include "fuzz.h"

static const uint8_t *script;
static size_t script_left, looks;
static uint64_t near_to; /* looks find numbers around this one, or any */

static uint64_t hostile(void)
{
    looks++;
    if (!script_left)
        return near_to;
    uint8_t kind = *script;
    script++, script_left--;
    if (kind < 200)
        return near_to + (uint64_t)(kind - 64) * 64;
    uint64_t value = 0;
    size_t n = script_left < 8 ? script_left : 8;
    memcpy(&value, script, n);
    script += n, script_left -= n;
    return value;
}

#define NOVA_SHM_LOOK(word) ((void)(word), hostile())
#define NOVA_SHM_TAKE(word, bits) ((void)(word), (void)(bits), (uint32_t)hostile())
#include "../../../csrc/shm.c"

enum { RING = 4096 };

static void within(const uint8_t *ring, const struct iovec *parts, int count, size_t most)
{
    size_t sum = 0;
    REQUIRE(count >= 0 && count <= 2);
    for (int i = 0; i < count; i++) {
        const uint8_t *at = parts[i].iov_base;
        REQUIRE(parts[i].iov_len > 0);
        REQUIRE(at >= ring && at + parts[i].iov_len <= ring + RING);
        sum += parts[i].iov_len;
    }
    REQUIRE(sum <= most && sum <= RING);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static _Alignas(4096) uint8_t map[NOVA_SHM_PAGE + 2 * RING];
    uint8_t out[2 * RING];
    nova_shm s;
    if (size < 9)
        return 0;
    uint64_t start;
    memcpy(&start, data + 1, 8);
    REQUIRE(nova_shm_map_bytes(RING) == sizeof map);
    nova_shm_begin(&s, map, RING, data[0] & 1, start);
    data += 9, size -= 9;
    size_t steps = size / 3;
    script = data + 2 * steps, script_left = size - 2 * steps;
    uint64_t head = start, tail = start;
    for (size_t i = 0; i < steps; i++) {
        struct iovec parts[2], from = {out, (size_t)data[2 * i + 1] * 33};
        uint32_t bell = 0;
        int before_in = s.in.error, before_out = s.out.error, code;
        int64_t n;
        looks = 0;
        switch (data[2 * i] % 8) {
        case 0:
            near_to = tail;
            code = nova_shm_here(&s, from.iov_len, parts);
            if (code >= 0)
                within(s.in_ring, parts, code, from.iov_len);
            REQUIRE(looks <= 1);
            REQUIRE(code >= 0 || code == s.in.error);
            break;
        case 1:
        case 2:
            near_to = tail;
            n = nova_shm_read(&s, out, from.iov_len, &bell);
            REQUIRE(n <= (int64_t)from.iov_len && n <= RING);
            REQUIRE(n >= 0 || n == NOVA_SHM_EHEAD);
            tail += n > 0 ? (uint64_t)n : 0;
            break;
        case 3:
            near_to = head;
            code = nova_shm_room(&s, from.iov_len, parts);
            if (code >= 0)
                within(s.out_ring, parts, code, from.iov_len);
            REQUIRE(looks <= 1);
            break;
        case 4:
        case 5:
            near_to = head;
            n = nova_shm_write(&s, &from, 1, &bell);
            REQUIRE(n <= (int64_t)from.iov_len && n <= RING);
            REQUIRE(n >= 0 || n == NOVA_SHM_ETAIL);
            head += n > 0 ? (uint64_t)n : 0;
            break;
        case 6:
            near_to = data[2 * i + 1] & 1 ? head : tail;
            code = nova_shm_arm(&s, 1 + data[2 * i + 1] % 3, 1);
            REQUIRE(code <= 1 && looks <= 2);
            break;
        default:
            near_to = data[2 * i + 1] & 1 ? head : tail;
            code = nova_shm_ready(&s, 1 + data[2 * i + 1] % 3);
            REQUIRE(code <= 1 && looks <= 2);
        }
        REQUIRE(s.out.at == head && s.in.at == tail);
        REQUIRE(s.in.peer_at - s.in.at <= RING && s.out.at - s.out.peer_at <= RING);
        REQUIRE((!before_in || s.in.error == before_in) && (!before_out || s.out.error == before_out));
        REQUIRE(atomic_load(&s.own->head) == head || head == start);
    }
    return 0;
}
