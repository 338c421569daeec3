#!/bin/sh
# Builds llama.cpp's own programs from the sources of the very binding that is installed, with the binding's flags, so
# that both hold the same code: llama_tools.sh PYTHON FOLDER. `make llama-tools` calls it. JOBS=1 builds more slowly.
set -eu

python=$1 folder=$2
programs="llama-bench llama-server llama-perplexity"
version=$("$python" -c 'from importlib.metadata import version; print(version("llama-cpp-python"))')

if [ "$(cat "$folder/version" 2>/dev/null)" = "$version" ]; then
  echo "$folder/bin has the programs of llama-cpp-python $version"
  exit 0
fi
for needed in cmake c++; do
  command -v "$needed" >/dev/null || { echo "llama_tools.sh needs $needed: install it and try again" >&2; exit 1; }
done

rm -rf "$folder"
mkdir -p "$folder/source"
"$python" -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest "$folder" "llama-cpp-python==$version"
tar -xzf "$folder"/llama_cpp_python-*.tar.gz --strip-components 1 -C "$folder/source"

# The server's web pages would be downloaded or built with npm, and nothing here talks to other machines. Without a
# commit of its own CMake would take that of the repository around it. CMAKE_ARGS is what the binding was built with.
header=$(cd "$(dirname "$0")/.." && pwd)/kvray/engines/llama_cpp/amx_tiles.h
export CXXFLAGS="${CXXFLAGS:-} -include $header"
# shellcheck disable=SC2086
cmake -S "$folder/source/vendor/llama.cpp" -B "$folder" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
  -DCMAKE_BUILD_RPATH_USE_ORIGIN=ON \
  -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_COMMON=ON -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON \
  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
  -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
  -DLLAMA_BUILD_COMMIT="llama-cpp-python-$version" -DLLAMA_BUILD_NUMBER=0 ${CMAKE_ARGS:-} >"$folder/cmake.log"
# shellcheck disable=SC2086
cmake --build "$folder" --parallel "${JOBS:-2}" --target $programs >"$folder/build.log" 2>&1 || {
  tail -n 20 "$folder/build.log" >&2
  exit 1
}
echo "$version" >"$folder/version"
echo "$folder/bin: $programs"
