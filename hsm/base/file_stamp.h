/* The stamp of a file (device, inode, size, times): it tells whether two paths are one file, and
 * whether somebody has touched the file meanwhile. All zero is the stamp of a file that is not
 * there. */
#ifndef HSM_BASE_FILE_STAMP_H
#define HSM_BASE_FILE_STAMP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

struct file_stamp {
    uint64_t device;
    uint64_t inode;
    uint64_t size;
    int64_t modified[2]; /* seconds, nanoseconds */
    int64_t changed[2];
};

void file_stamp_of(const struct stat *file, struct file_stamp *stamp);

/* -1: stat failed (errno says why), and the stamp is all zero. */
int file_stamp_path(const char *path, struct file_stamp *stamp);
int file_stamp_open(int fd, struct file_stamp *stamp);

bool file_stamp_same_file(const struct file_stamp *a, const struct file_stamp *b);
bool file_stamp_untouched(const struct file_stamp *a, const struct file_stamp *b);

#endif
