/* csrc/ottext.h - transform and compose text operations (Ellis and Gibbs 1989), one pass.
 *
 * An operation is an array of pieces in the order of the text: skip, insert or delete `size` code points, size > 0.
 * What comes after the last piece stays. A result names its pieces by where they come from, so no text is copied here.
 * Arguments are borrowed. Nothing here allocates or fails. */
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef enum { NOVA_SKIP, NOVA_INSERT, NOVA_DELETE } nova_ottext_kind;

typedef struct {
    uint32_t kind;
    uint32_t source; /* of a result: the index of the piece that this is a part of; second's pieces follow first's */
    uint32_t start;  /* of a result: where in that piece it begins */
    uint32_t size;
} nova_ottext_piece;

/* first for the text that second has changed; at equal positions first's text comes first if left is not 0.
 * out has room for 2 * (nfirst + nsecond) pieces; returns how many it got. */
size_t nova_ottext_transform(const nova_ottext_piece *first, size_t nfirst, const nova_ottext_piece *second,
                             size_t nsecond, int left, nova_ottext_piece *out);

/* What first and then second do. out has room for 2 * (nfirst + nsecond) pieces; returns how many it got. */
size_t nova_ottext_compose(const nova_ottext_piece *first, size_t nfirst, const nova_ottext_piece *second,
                           size_t nsecond, nova_ottext_piece *out);
