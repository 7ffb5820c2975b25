/* Runs a fuzz entry without libFuzzer, so that plain gcc with its sanitizers is enough.
 *
 *   fuzz_x PATH...                         every file named or in a folder named, once
 *   fuzz_x < FILE                          one input
 *   fuzz_x --mutate SECONDS SEED PATH...   those, then inputs made from them
 *
 * What --mutate makes depends on SEED and the corpus alone: the same numbers find the
 * same fault again. An input that ends the process is left behind in ./crash-input. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { INPUT_MAX = 65536, MUTANT_MAX = 16384, CORPUS_MAX = 4096 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* Sanitizers end the process without a signal, but call this first. */
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

struct input {
    uint8_t *bytes;
    size_t length;
};

static struct input corpus[CORPUS_MAX];
static size_t corpus_count;
static struct input current;
static uint64_t random_state;

static void keep_current(void)
{
    int fd = open("crash-input", O_WRONLY | O_CREAT | O_TRUNC, 0600);

    if (fd < 0)
        return;
    if (write(fd, current.bytes, current.length) == (ssize_t)current.length)
        (void)!write(STDERR_FILENO, "input kept in crash-input\n", 26);
    (void)close(fd);
}

static void on_signal(int number)
{
    keep_current();
    (void)signal(number, SIG_DFL);
    (void)raise(number);
}

static void watch_for_death(void)
{
    (void)signal(SIGABRT, on_signal);
    if (__sanitizer_set_death_callback) {
        __sanitizer_set_death_callback(keep_current);
        return;
    }
    (void)signal(SIGSEGV, on_signal);
    (void)signal(SIGBUS, on_signal);
    (void)signal(SIGFPE, on_signal);
}

/* The entry gets a block of exactly the right size: one byte too far is seen. */
static void run(const uint8_t *bytes, size_t length)
{
    uint8_t *copy = malloc(length > 0 ? length : 1);

    if (!copy)
        exit(2);
    memcpy(copy, bytes, length);
    current = (struct input){copy, length};
    (void)LLVMFuzzerTestOneInput(copy, length);
    free(copy);
}

/* ---- corpus ---- */

static void add(int fd)
{
    uint8_t *bytes = malloc(INPUT_MAX);
    size_t length = 0;
    ssize_t got;

    if (!bytes || corpus_count == CORPUS_MAX)
        exit(2);
    while (length < INPUT_MAX && (got = read(fd, bytes + length, INPUT_MAX - length)) > 0)
        length += (size_t)got;
    corpus[corpus_count++] = (struct input){bytes, length};
}

static void add_file(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        (void)fprintf(stderr, "%s: %s\n", path, strerror(errno));
        exit(2);
    }
    add(fd);
    (void)close(fd);
}

static int visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static void add_path(const char *path)
{
    struct dirent **entries;
    int count = scandir(path, &entries, visible, alphasort);
    char file[4096];

    if (count < 0) {
        add_file(path);
        return;
    }
    for (int i = 0; i < count; i++) {
        (void)snprintf(file, sizeof file, "%s/%s", path, entries[i]->d_name);
        add_file(file);
        free(entries[i]);
    }
    free(entries);
}

static void forget_corpus(void)
{
    for (size_t i = 0; i < corpus_count; i++)
        free(corpus[i].bytes);
}

/* ---- mutation ---- */

static uint64_t next_random(void) /* splitmix64 */
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15U;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
}

static size_t below(size_t limit)
{
    return limit > 0 ? (size_t)(next_random() % limit) : 0;
}

static void flip_bit(struct input *m)
{
    if (m->length > 0)
        m->bytes[below(m->length)] ^= (uint8_t)(1U << below(8));
}

static void set_byte(struct input *m)
{
    static const uint8_t telling[] = {0,   1,   0x7f, 0x80, 0xff, 0x30, 0x04, 0x03, '"',
                                      '{', '}', '[',  ']',  '\\', '\n', ' ',  '_',  '-'};
    bool any = below(2) == 0;

    if (m->length > 0)
        m->bytes[below(m->length)] = any ? (uint8_t)next_random() : telling[below(sizeof telling)];
}

static void cut(struct input *m)
{
    size_t at = below(m->length + 1);
    size_t count = below(m->length - at + 1);

    memmove(m->bytes + at, m->bytes + at + count, m->length - at - count);
    m->length -= count;
}

static void truncate_end(struct input *m)
{
    m->length = below(m->length + 1);
}

static void insert(struct input *m, const uint8_t *bytes, size_t count)
{
    size_t at = below(m->length + 1);

    if (m->length + count > MUTANT_MAX)
        return;
    memmove(m->bytes + at + count, m->bytes + at, m->length - at);
    memcpy(m->bytes + at, bytes, count);
    m->length += count;
}

static void repeat(struct input *m)
{
    uint8_t block[256];
    size_t at = below(m->length + 1);
    size_t count = below(m->length - at + 1) % sizeof block;

    memcpy(block, m->bytes + at, count);
    for (size_t i = below(4); i > 0; i--)
        insert(m, block, count);
}

static void insert_random(struct input *m)
{
    uint8_t block[16];
    size_t count = 1 + below(sizeof block);

    for (size_t i = 0; i < count; i++)
        block[i] = (uint8_t)next_random();
    insert(m, block, count);
}

static void cross(struct input *m)
{
    const struct input *other = &corpus[below(corpus_count)];
    size_t at = below(other->length + 1);

    insert(m, other->bytes + at, below(other->length - at + 1));
}

static void (*const mutations[])(struct input *) = {
    flip_bit, set_byte, cut, truncate_end, repeat, insert_random, cross,
};

static unsigned long mutate(time_t seconds)
{
    static uint8_t bytes[MUTANT_MAX];
    unsigned long runs = 0;
    struct timespec now;
    time_t end;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    end = now.tv_sec + seconds;
    for (; now.tv_sec < end; runs++) {
        const struct input *parent = &corpus[below(corpus_count)];
        struct input m = {bytes, parent->length < MUTANT_MAX ? parent->length : MUTANT_MAX};

        memcpy(bytes, parent->bytes, m.length);
        for (size_t i = 1 + below(4); i > 0; i--)
            mutations[below(sizeof mutations / sizeof mutations[0])](&m);
        run(m.bytes, m.length);
        (void)clock_gettime(CLOCK_MONOTONIC, &now);
    }
    return runs;
}

int main(int argc, char **argv)
{
    bool mutating = argc > 3 && strcmp(argv[1], "--mutate") == 0;
    unsigned long runs = 0;

    watch_for_death();
    for (int i = mutating ? 4 : 1; i < argc; i++)
        add_path(argv[i]);
    if (corpus_count == 0)
        add(STDIN_FILENO);
    for (size_t i = 0; i < corpus_count; i++)
        run(corpus[i].bytes, corpus[i].length);
    if (mutating) {
        random_state = strtoull(argv[3], NULL, 10);
        runs = mutate((time_t)strtol(argv[2], NULL, 10));
    }
    forget_corpus();
    (void)printf("%s: %zu kept inputs, %lu made ones\n", argv[0], corpus_count, runs);
    return 0;
}
