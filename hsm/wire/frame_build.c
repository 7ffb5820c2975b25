/* The layout of frames follows from these sources, so the Makefile makes their digest its id. */
#include "hsm/wire/frame.h"

#ifndef FRAME_ID
#error "FRAME_ID comes from the Makefile"
#endif

static const char id[FRAME_BUILD_ID] = FRAME_ID;

_Static_assert(sizeof FRAME_ID <= sizeof id, "the id has a NUL behind it");

const char *frame_build_id(void)
{
    return id;
}
