#!/bin/bash
# Who may know what. Each row is a folder and the folders whose headers its files may include;
# its own are understood. Whatever else a file includes is printed, and the check fails. The
# rows stand in order: a folder names only those above it, so that there is no way round.
#
#   tests/lib/layers.sh [FOLDER]      of another checkout
set -euo pipefail
cd "${1:-$(dirname "$0")/../..}"

rooms="
hsm/base
hsm/wire           hsm/base
hsm                hsm/wire hsm/base
plugin/bundle      hsm/base
plugin/report      hsm/base hsm/wire
plugin/config      hsm/base hsm/wire plugin/bundle
plugin/rpc         hsm/base plugin/report proto
plugin/worker      hsm/base hsm/wire plugin/report
plugin/keys        hsm/base hsm/wire plugin/config plugin/report plugin/worker
plugin/command     hsm/base hsm/wire plugin/bundle plugin/config plugin/keys plugin/report plugin/worker
plugin/service     hsm/base hsm/wire plugin/bundle plugin/config plugin/keys plugin/report plugin/rpc proto
plugin             hsm/base hsm/wire plugin/command plugin/config plugin/report plugin/rpc plugin/service plugin/worker
"
# Libraries whose headers only some may see: a pattern of the header, and of the files.
libraries="
grpc/       plugin/rpc/rpc(_[a-z]+)?\.[ch]
p11-kit/    hsm/([a-z_]+|wire/[a-z_]+)\.[ch]
jansson     hsm/keyfile\.c|plugin/[a-z]+/[a-z0-9_]+\.[ch]
"
# Of hsm/wire what speaks in PKCS#11's own types is for hsm/ alone.
private='hsm/wire/rv\.h'

wrong=0
complain() {
    echo "$1:$2: includes $3, $4"
    wrong=1
}

declare -A may=()
while read -r room others; do
    [ -n "$room" ] || continue
    for other in $others; do
        [[ $other == proto || -n ${may[$other]+known} ]] || { echo "layers: $room names $other before its row"; exit 1; }
    done
    may[$room]=" $room $others "
done <<<"$rooms"

while IFS=: read -r file line text; do
    room=$(dirname "$file")
    [ -n "${may[$room]-}" ] || { complain "$file" "$line" "something" "and its folder has no row"; continue; }
    header=${text#*[<\"]}
    header=${header%%[>\"]*}
    if [[ $text == *\"* ]]; then
        [[ ${may[$room]} == *" $(dirname "$header") "* ]] || complain "$file" "$line" "$header" "which $room may not know"
        [[ $header =~ ^$private$ && $room == plugin* ]] && complain "$file" "$line" "$header" "which is for hsm/ alone"
        continue
    fi
    while read -r library files; do
        [[ -n $library && $header == $library* && ! $file =~ ^($files)$ ]] &&
            complain "$file" "$line" "$header" "which only $files may see"
    done <<<"$libraries"
done < <(grep -HnE '^#include' hsm/*.[ch] hsm/*/*.[ch] plugin/*.[ch] plugin/*/*.[ch])

((wrong == 0)) && echo "layers: fine"
exit $wrong
