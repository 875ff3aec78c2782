/* csrc/meter.h - histogram buckets and a mergeable quantile sketch (DDSketch: Masson, Rim, Lee 2019).
 *
 * The sketch counts values in bins whose bounds grow by gamma = (1 + a) / (1 - a): bin k holds (gamma^(k-1), gamma^k],
 * and its middle is within a of every value in it. Bins are a dense window [low, low + size) that the caller grows.
 * Two sketches of one gamma merge exactly by adding bins. Nothing here allocates or fails. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#define NOVA_SKETCH_ERROR 0.01
/* Values under the first count as zero, over the last as the last: 1,700 bins at most. */
#define NOVA_SKETCH_MIN 1e-9
#define NOVA_SKETCH_MAX 1e12

/* Index of the first bound that is not less than v, n if none is: Prometheus buckets are "less or equal". NaN gives n. */
size_t nova_meter_bucket(const double *bounds, size_t n, double v);

/* Bin of a value in [NOVA_SKETCH_MIN, NOVA_SKETCH_MAX]. */
int32_t nova_sketch_bin(double v);

/* The value at quantile q in [0, 1] of zeros + sum(bins) > 0 values, within NOVA_SKETCH_ERROR of the exact one
 * (the value with floor(q * (count - 1)) values before it). */
double nova_sketch_quantile(const uint64_t *bins, size_t size, int32_t low, uint64_t zeros, uint64_t count, double q);
