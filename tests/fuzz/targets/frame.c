/* tests/fuzz/targets/frame.c - frame headers and their checksum on any bytes.
 *
 * A header that is read writes back the same bytes, and its length is within bounds; the checksum is the plain one's,
 * in one piece or two, and no flipped bit passes it. */
#include "frame.h"
#include "fuzz.h"

enum { LENGTH_MAX = 1 << 12 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    nova_frame frame;
    uint32_t crc = nova_frame_crc32c(0, data, size);
    size_t cut = size ? data[size - 1] % (size + 1) : 0;
    REQUIRE(crc == nova_frame_crc32c_plain(0, data, size));
    for (int level = NOVA_CRC_PLAIN; level <= NOVA_CRC_WIDE; level++)
        REQUIRE(crc == nova_frame_crc32c_at(level, 0, data, size));
    REQUIRE(crc == nova_frame_crc32c(nova_frame_crc32c(0, data, cut), data + cut, size - cut));
    if (size < NOVA_FRAME_HEADER || nova_frame_read(data, LENGTH_MAX, &frame))
        return 0;
    REQUIRE(frame.length <= LENGTH_MAX);
    REQUIRE(frame.length >= (frame.flags & NOVA_FLAG_TRACE ? NOVA_FRAME_TRACE : 0u) +
                                (frame.flags & NOVA_FLAG_MAC ? NOVA_FRAME_MAC : 0u));
    uint8_t *own = malloc(NOVA_FRAME_HEADER + frame.length);
    size_t body = size - NOVA_FRAME_HEADER < frame.length ? size - NOVA_FRAME_HEADER : frame.length;
    memset(own, 0xee, NOVA_FRAME_HEADER + frame.length);
    memcpy(own + NOVA_FRAME_HEADER, data + NOVA_FRAME_HEADER, body);
    nova_frame_write(own, &frame);
    REQUIRE(!memcmp(own, data, NOVA_FRAME_SIGNED));
    REQUIRE(nova_frame_checks(own, own + NOVA_FRAME_HEADER, frame.length));
    if (body == frame.length && nova_frame_checks(data, data + NOVA_FRAME_HEADER, frame.length))
        REQUIRE(!memcmp(own, data, NOVA_FRAME_HEADER));
    size_t flip = frame.sequence % (NOVA_FRAME_HEADER + frame.length);
    own[flip] ^= (uint8_t)(1u << frame.stream % 8);
    REQUIRE(!nova_frame_checks(own, own + NOVA_FRAME_HEADER, frame.length));
    free(own);
    return 0;
}
