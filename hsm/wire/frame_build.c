#include "hsm/wire/frame.h"

#include <elf.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static char build_id[FRAME_BUILD_ID];

static size_t padded(size_t length)
{
    return (length + 3) & ~(size_t)3;
}

/* A note of elf(5): header, name, description, both padded to 4 bytes. The description
 * of NT_GNU_BUILD_ID is what the linker made of all it put into the file. */
static bool read_notes(const uint8_t *at, size_t left)
{
    ElfW(Nhdr) note;

    while (left >= sizeof note) {
        size_t name, description;

        memcpy(&note, at, sizeof note);
        name = padded(note.n_namesz);
        description = padded(note.n_descsz);
        if (name > left - sizeof note || description > left - sizeof note - name)
            return false;
        at += sizeof note;
        if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 && memcmp(at, "GNU", 4) == 0) {
            for (size_t i = 0; i < note.n_descsz && 2 * i + 2 < sizeof build_id; i++)
                (void)snprintf(build_id + 2 * i, 3, "%02x", at[name + i]);
            return true;
        }
        at += name + description;
        left -= sizeof note + name + description;
    }
    return false;
}

/* The first object that dl_iterate_phdr shows is the executable itself. */
static int read_executable(struct dl_phdr_info *info, size_t size, void *found)
{
    (void)size;
    for (size_t i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        uintptr_t address = info->dlpi_addr + header->p_vaddr;

        if (header->p_type == PT_NOTE && read_notes((const uint8_t *)address, header->p_memsz))
            *(bool *)found = true;
    }
    return 1;
}

static void make_build_id(void)
{
    bool found = false;

    (void)dl_iterate_phdr(read_executable, &found);
    if (!found)
        (void)snprintf(build_id, sizeof build_id, "none, frame %zu", sizeof(struct frame));
}

const char *frame_build_id(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    (void)pthread_once(&once, make_build_id);
    return build_id;
}
