#include "hsm/base/look.h"

#include <string.h>

void look_of(const struct stat *file, struct look *look)
{
    memset(look, 0, sizeof *look);
    look->device = file->st_dev;
    look->inode = file->st_ino;
    look->size = (uint64_t)file->st_size;
    look->modified[0] = file->st_mtim.tv_sec;
    look->modified[1] = file->st_mtim.tv_nsec;
    look->changed[0] = file->st_ctim.tv_sec;
    look->changed[1] = file->st_ctim.tv_nsec;
}

static int keep(int result, const struct stat *file, struct look *look)
{
    if (result == 0)
        look_of(file, look);
    else
        memset(look, 0, sizeof *look);
    return result;
}

int look_at_path(const char *path, struct look *look)
{
    struct stat file;

    return keep(stat(path, &file), &file, look);
}

int look_at_open(int fd, struct look *look)
{
    struct stat file;

    return keep(fstat(fd, &file), &file, look);
}

bool look_same_file(const struct look *a, const struct look *b)
{
    return a->inode != 0 && a->device == b->device && a->inode == b->inode;
}

bool look_untouched(const struct look *a, const struct look *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}
