/* The commands that an operator runs by hand: spire-hsm check, keys, prune, accept, evidence,
 * bench, bundle show. They use the token in process, without gRPC or a worker, and read the
 * configuration a server reads. */
#ifndef PLUGIN_COMMAND_COMMAND_H
#define PLUGIN_COMMAND_COMMAND_H

#include <stdbool.h>
#include <stdio.h>

/* Is this word of the command line a command? */
bool command_is(const char *word);

/* Does this word ask for help? */
bool command_is_help(const char *word);

/* Runs the command argv[0] names; answers on stdout, complaints on stderr. The exit status: 0 all
 * is well, 1 the command found something wrong, 2 it could not look. */
int command_run(int argc, char **argv);

/* One line a command, for `spire-hsm --help`. */
void command_list(FILE *out);

#endif
