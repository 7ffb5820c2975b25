/* The error value: a code and a sentence, which always fits and is always UTF-8. */
#include "hsm/base/fault.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "hsm/base/utf8.h"

/* A status message is sent as UTF-8: the host refuses a whole status if half a character stands at
 * its end. */
static void cut_at_character(char *text, size_t size)
{
    size_t length = strnlen(text, size);

    if (length == size - 1)
        text[utf8_whole(text, length)] = '\0';
}

__attribute__((format(printf, 3, 0))) static void append(char *text, size_t size,
                                                         const char *format, va_list args)
{
    size_t used = strnlen(text, size);

    (void)vsnprintf(text + used, size - used, format, args);
    cut_at_character(text, size);
}

static void append_text(char *text, size_t size, const char *more)
{
    size_t used = strnlen(text, size);

    (void)snprintf(text + used, size - used, "%s", more);
    cut_at_character(text, size);
}

static void reset(struct fault *fault, enum fault_code code)
{
    fault->code = code;
    fault->ckr = 0;
    fault->message[0] = '\0';
}

int fault_set(struct fault *fault, enum fault_code code, const char *format, ...)
{
    struct fault made; /* the arguments may point into *fault */
    va_list args;

    if (!fault)
        return -1;
    reset(&made, code);
    va_start(args, format);
    append(made.message, sizeof made.message, format, args);
    va_end(args);
    *fault = made;
    return -1;
}

int fault_errno(struct fault *fault, enum fault_code code, int error, const char *format, ...)
{
    struct fault made;
    char text[128];
    va_list args;

    if (!fault)
        return -1;
    reset(&made, code);
    va_start(args, format);
    append(made.message, sizeof made.message, format, args);
    va_end(args);
    append_text(made.message, sizeof made.message, ": ");
    append_text(made.message, sizeof made.message, strerror_r(error, text, sizeof text));
    *fault = made;
    return -1;
}

int fault_prefix(struct fault *fault, const char *format, ...)
{
    char text[FAULT_MESSAGE_MAX] = "";
    va_list args;

    if (!fault)
        return -1;
    va_start(args, format);
    append(text, sizeof text, format, args);
    va_end(args);
    append_text(text, sizeof text, ": ");
    append_text(text, sizeof text, fault->message);
    memcpy(fault->message, text, sizeof text);
    return -1;
}
