/* tests/fuzz/targets/bulk.c - heads of chunk frames, and acknowledgements, from a stranger.
 *
 * A head that is read names a chunk of the grid, and is, but for its checksum, the very head that is written for it; an
 * acknowledgement that is read is the one that is written. Both are tried with a key and without. */
#include "bulk.h"
#include "frame.h"
#include "fuzz.h"

static const nova_bulk_plan PLAN = {
    .transfer = 77, .bytes = 10 * 4096 + 100, .chunk_bytes = 4096, .chunks = 11, .digest = NOVA_BULK_BLAKE3};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t key[32];
    uint8_t frame[NOVA_BULK_HEAD + NOVA_BULK_MAC] = {0}, own[NOVA_BULK_HEAD + NOVA_BULK_MAC], sum[NOVA_BULK_SUM];
    memcpy(frame, data, size < sizeof frame ? size : sizeof frame);
    for (int keyed = 0; keyed < 2; keyed++) {
        uint32_t chunk = NOVA_BULK_NONE;
        if (!nova_bulk_read(&PLAN, frame, keyed, 0, &chunk)) {
            REQUIRE(chunk < PLAN.chunks);
            REQUIRE(nova_bulk_size(&PLAN, chunk) > 0);
            REQUIRE((uint64_t)chunk * PLAN.chunk_bytes + nova_bulk_size(&PLAN, chunk) <= PLAN.bytes);
            nova_bulk_write(&PLAN, own, keyed, 0, chunk);
            REQUIRE(!memcmp(own, frame, 20) && !memcmp(own + 24, frame + 24, 16));
        } else {
            REQUIRE(chunk == NOVA_BULK_NONE);
        }
        uint64_t count = 0;
        /* No fuzzer guesses a checksum: what it made is tried with the right one, too. */
        for (int sealed = 0; sealed < 2; sealed++) {
            nova_frame header;
            size_t room = NOVA_BULK_HEAD - NOVA_FRAME_HEADER + (keyed ? NOVA_BULK_MAC : 0);
            memcpy(own, frame, sizeof own);
            if (sealed && !nova_frame_read(own, room, &header) && header.length == room) {
                memset(sum, 0, sizeof sum);
                if (keyed)
                    nova_bulk_mac(own, sum, key, own + NOVA_BULK_HEAD);
                nova_frame_write(own, &header);
            }
            if (!nova_bulk_read_ack(&PLAN, own, keyed ? key : NULL, 0, &count)) {
                uint8_t again[sizeof own];
                REQUIRE(nova_bulk_write_ack(&PLAN, again, keyed ? key : NULL, 0, count) == NOVA_FRAME_HEADER + room);
                REQUIRE(!memcmp(again, own, NOVA_FRAME_HEADER + room));
                again[size % (NOVA_FRAME_HEADER + room)] ^= 1;
                REQUIRE(nova_bulk_read_ack(&PLAN, again, keyed ? key : NULL, 0, &count));
            }
        }
    }
    size_t cut = size ? data[0] % (size + 1) : 0;
    uint32_t a = nova_frame_crc32c(0, data, cut), b = nova_frame_crc32c(0, data + cut, size - cut);
    REQUIRE(nova_bulk_crc_join(a, b, nova_bulk_crc_power(size - cut)) == nova_frame_crc32c(0, data, size));
    return 0;
}
