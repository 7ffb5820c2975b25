/* Ownership by scope: a local marked OWNED(release) is released when its scope
 * ends, so an early return is the ordinary way out. release takes a pointer to
 * the local and accepts one that was never filled. */
#ifndef HSM_BASE_SCOPE_H
#define HSM_BASE_SCOPE_H

#include <dirent.h>
#include <stdlib.h>
#include <unistd.h>

#define OWNED(release) __attribute__((cleanup(release)))

static inline void scope_free(void *pointer)
{
    free(*(void **)pointer);
}

static inline void scope_close(const int *fd)
{
    if (*fd >= 0)
        (void)close(*fd);
}

static inline void scope_closedir(DIR *const *directory)
{
    if (*directory)
        (void)closedir(*directory);
}

#endif
