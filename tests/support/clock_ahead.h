/* A stand-in for clock_gettime(2): every clock shows the real time and what has been passed. */
#ifndef TESTS_CLOCK_AHEAD_H
#define TESTS_CLOCK_AHEAD_H

#include <stdatomic.h>
#include <stdint.h>

extern atomic_llong clock_ahead; /* s; a scene begins with 0 */

void pass(int64_t seconds);

#endif
