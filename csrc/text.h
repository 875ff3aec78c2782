/* csrc/text.h - where two sequences of numbers differ (Myers 1986), aligned as git aligns them.
 *
 * Lines without a partner are set aside before the search, and so are, in the company of such, those that are there
 * so often that they would pair by accident. A run of changes that could stand in several places goes to where the
 * other side changed too, or else as far down as it can.
 *
 * Arguments are borrowed. Nothing here allocates or fails. */
#pragma once
#include <stddef.h>
#include <stdint.h>

/* Bytes of scratch for sequences of these lengths, whose numbers are below `distinct`. */
size_t nova_text_scratch_bytes(size_t na, size_t nb, size_t distinct);

/* Flags elements of a that are not in b, and of b that are not in a, on a shortest way from one to the other, or on a
 * good one where that took more than max(256, sqrt(na + nb)) steps.
 *
 * gone, come  room for na + 1 and nb + 1 flags; the one behind the last is clear
 * scratch     see above, aligned for int64_t
 * cost        O((na + nb) d) for d differences */
void nova_text_diff(const uint32_t *a, size_t na, const uint32_t *b, size_t nb, size_t distinct, uint8_t *gone,
                    uint8_t *come, void *scratch);
