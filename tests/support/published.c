#include "tests/support/published.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <unistd.h>

#include <cmocka.h>

#include "plugin/bundle/bundle.h"

size_t read_published(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd >= 0 ? read(fd, text, size - 1) : 0;

    if (fd >= 0)
        (void)close(fd);
    text[length > 0 ? length : 0] = '\0';
    return (size_t)length;
}

void assert_published_sequence(const char *path, uint64_t sequence)
{
    struct bundle_summary summary = {0};
    char text[8192];
    size_t length = read_published(path, text, sizeof text);

    assert_int_equal(bundle_read(text, length, BUNDLE_SPIFFE, &summary, NULL), 0);
    assert_int_equal(summary.sequence, sequence);
}
