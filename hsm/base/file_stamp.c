/* What stat(2) says of a file, kept to see later whether somebody has touched it. */
#include "hsm/base/file_stamp.h"

#include <string.h>

void file_stamp_of(const struct stat *file, struct file_stamp *stamp)
{
    memset(stamp, 0, sizeof *stamp);
    stamp->device = file->st_dev;
    stamp->inode = file->st_ino;
    stamp->size = (uint64_t)file->st_size;
    stamp->modified[0] = file->st_mtim.tv_sec;
    stamp->modified[1] = file->st_mtim.tv_nsec;
    stamp->changed[0] = file->st_ctim.tv_sec;
    stamp->changed[1] = file->st_ctim.tv_nsec;
}

static int keep(int result, const struct stat *file, struct file_stamp *stamp)
{
    if (result == 0)
        file_stamp_of(file, stamp);
    else
        memset(stamp, 0, sizeof *stamp);
    return result;
}

int file_stamp_path(const char *path, struct file_stamp *stamp)
{
    struct stat file;

    return keep(stat(path, &file), &file, stamp);
}

int file_stamp_open(int fd, struct file_stamp *stamp)
{
    struct stat file;

    return keep(fstat(fd, &file), &file, stamp);
}

bool file_stamp_same_file(const struct file_stamp *a, const struct file_stamp *b)
{
    return a->inode != 0 && a->device == b->device && a->inode == b->inode;
}

bool file_stamp_untouched(const struct file_stamp *a, const struct file_stamp *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}
