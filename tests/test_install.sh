#!/usr/bin/env bash
# cmake --install gives a library that others can use: only kiln_* names are exported, and a
# program builds against it with pkg-config (shared, static) and with find_package.
set -eu
if [ ! -e "$KILN_BUILD/libkiln.so" ] || [ ! -e "$KILN_BUILD/kiln.pc" ]; then
    echo "SKIP: this build has no installation"
    exit 77
fi
prefix=$(mktemp -d)
trap 'rm -rf "$prefix"' EXIT
cmake --install "$KILN_BUILD" --prefix "$prefix" >/dev/null

lib=$(dirname "$(find "$prefix" -name libkiln.so)")
extra=$(nm -D --defined-only "$lib/libkiln.so" | awk '$2 ~ /[TDBR]/ && $3 !~ /^kiln_/ { print $3 }')
[ -z "$extra" ] || { echo "libkiln.so: expected kiln_* names only, found: $extra"; exit 1; }
nm -D --defined-only "$lib/libkiln.so" | grep -q ' T kiln_' ||
    { echo "libkiln.so: expected kiln_* functions, found none"; exit 1; }
for file in bin/kiln include/kiln.h; do
    [ -e "$prefix/$file" ] || { echo "$file: not installed"; exit 1; }
done
for weights in models/weights/*.safetensors; do
    [ ! -e "$weights" ] || cmp "$weights" "$prefix/share/kiln/models/${weights##*/}"
done

# The example: a whole program over the public header alone, in C and as C++ would read the header.
model=$PWD/tests/golden/nano_p4.safetensors
mkdir "$prefix/user"
cp examples/generate.c "$prefix/user/main.c"
lines=$(wc -l <"$prefix/user/main.c")
[ "$lines" -lt 60 ] || { echo "examples/generate.c: $lines lines, expected fewer than 60"; exit 1; }
run() { # run PROGRAM FILE
    "$1" "$model" 0 "$2" 7 2 cpu
    [ "$(head -c 4 "$2" | tail -c 3)" = PNG ] || { echo "$1: no picture"; exit 1; }
}
# The installed .pc file names the prefix that was configured: point it at this one.
sed -i "s|^prefix=.*|prefix=$prefix|" "$lib/pkgconfig/kiln.pc"
export PKG_CONFIG_PATH=$lib/pkgconfig
${CC:-cc} "$prefix/user/main.c" -o "$prefix/user/shared" $(pkg-config --cflags --libs kiln)
export LD_LIBRARY_PATH=$lib
run "$prefix/user/shared" "$prefix/shared.png"
unset LD_LIBRARY_PATH
mkdir "$prefix/static" && cp "$lib/libkiln.a" "$prefix/static"
${CC:-cc} "$prefix/user/main.c" -o "$prefix/user/static" $(pkg-config --cflags kiln) \
    -L"$prefix/static" $(pkg-config --libs --static kiln)
run "$prefix/user/static" "$prefix/static.png"
cmp "$prefix/shared.png" "$prefix/static.png"
if command -v "${CXX:-c++}" >/dev/null; then
    echo '#include <kiln.h>' | ${CXX:-c++} -x c++ -Wall -Wextra -Werror -fsyntax-only \
        $(pkg-config --cflags kiln) -
fi

cat >"$prefix/user/CMakeLists.txt" <<'END'
cmake_minimum_required(VERSION 3.22)
project(user C)
find_package(kiln 0.1 REQUIRED)
add_executable(user main.c)
target_link_libraries(user PRIVATE kiln::kiln)
END
generator=$(sed -n 's/^CMAKE_GENERATOR:INTERNAL=//p' "$KILN_BUILD/CMakeCache.txt")
cmake -G "$generator" -S "$prefix/user" -B "$prefix/user/build" -DCMAKE_PREFIX_PATH="$prefix" >/dev/null
cmake --build "$prefix/user/build" >/dev/null
run "$prefix/user/build/user" "$prefix/cmake.png"
cmp "$prefix/shared.png" "$prefix/cmake.png"
