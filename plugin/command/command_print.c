/* How the commands print tables, hexadecimal and ages. */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/base/utf8.h"
#include "plugin/command/command_private.h"

/* ---- tables ---- */

/* A row is left out if there is no memory for it. The number of rows is printed elsewhere. */
static struct table_row *new_row(struct table *table)
{
    struct table_row *row;

    if (table->count == table->room) {
        size_t room = table->room ? 2 * table->room : 16;
        struct table_row *rows = reallocarray(table->rows, room, sizeof *rows);

        if (!rows)
            return NULL;
        table->rows = rows;
        table->room = room;
    }
    row = &table->rows[table->count++];
    memset(row, 0, sizeof *row);
    return row;
}

void table_row(struct table *table, ...)
{
    struct table_row *row = new_row(table);
    const char *text;
    va_list args;

    va_start(args, table);
    for (size_t i = 0; row && i < TABLE_COLUMNS && (text = va_arg(args, const char *)); i++)
        utf8_clean(text, false, row->cells[i], TABLE_CELL);
    va_end(args);
}

void table_note(struct table *table, const char *format, ...)
{
    char text[TABLE_NOTE];
    va_list args;

    if (table->count == 0)
        return;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    utf8_clean(text, false, table->rows[table->count - 1].note, TABLE_NOTE);
}

static size_t characters(const char *text)
{
    size_t count = 0;

    for (; *text; text++)
        count += ((unsigned char)*text & 0xc0) != 0x80;
    return count;
}

static void measure(const struct table *table, size_t widths[TABLE_COLUMNS])
{
    for (size_t i = 0; i < table->count; i++)
        for (size_t column = 0; column < TABLE_COLUMNS; column++) {
            size_t width = characters(table->rows[i].cells[column]);

            widths[column] = width > widths[column] ? width : widths[column];
        }
}

static void print_row(const struct table_row *row, const size_t widths[TABLE_COLUMNS], FILE *out)
{
    size_t last = TABLE_COLUMNS - 1;

    while (last > 0 && row->cells[last][0] == '\0')
        last--;
    for (size_t column = 0; column < last; column++)
        (void)fprintf(out, "%s%*s  ", row->cells[column],
                      (int)(widths[column] - characters(row->cells[column])), "");
    (void)fprintf(out, "%s\n", row->cells[last]);
    if (row->note[0] != '\0')
        (void)fprintf(out, "    %s\n", row->note);
}

void table_print(const struct table *table, FILE *out)
{
    size_t widths[TABLE_COLUMNS] = {0};

    measure(table, widths);
    for (size_t i = 0; i < table->count; i++)
        print_row(&table->rows[i], widths, out);
}

void table_free(struct table *table)
{
    free(table->rows);
    *table = (struct table){.rows = NULL};
}

/* ---- values ---- */

void print_age(int64_t seconds, char text[AGE_TEXT])
{
    static const struct {
        int64_t below; /* below this, two digits of the smaller unit say enough */
        int64_t unit;
        char name;
    } units[] = {{120, 1, 's'}, {7200, 60, 'm'}, {172800, 3600, 'h'}, {INT64_MAX, 86400, 'd'}};
    size_t i = 0;

    if (seconds < 0) /* the token's clock differs from ours */
        seconds = 0;
    while (seconds >= units[i].below)
        i++;
    (void)snprintf(text, AGE_TEXT, "%lld%c", (long long)(seconds / units[i].unit), units[i].name);
}
