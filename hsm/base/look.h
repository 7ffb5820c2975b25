/* How a file looks from outside: whether two looks are of one file, and whether it was
 * touched in between. All zero is the look of what is not there. */
#ifndef HSM_BASE_LOOK_H
#define HSM_BASE_LOOK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

struct look {
    uint64_t device;
    uint64_t inode;
    uint64_t size;
    int64_t modified[2]; /* seconds, nanoseconds */
    int64_t changed[2];
};

void look_of(const struct stat *file, struct look *look);

/* -1: it could not be looked at (errno says why), and the look is all zero. */
int look_at_path(const char *path, struct look *look);
int look_at_open(int fd, struct look *look);

bool look_same_file(const struct look *a, const struct look *b);
bool look_untouched(const struct look *a, const struct look *b);

#endif
