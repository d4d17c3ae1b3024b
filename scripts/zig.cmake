# zig as a cross compiler, for the target in $ZIG_TARGET, such as aarch64-linux-gnu.2.17; scripts/wheel uses it.
string(REGEX MATCH "^[^-]+" CMAKE_SYSTEM_PROCESSOR $ENV{ZIG_TARGET})
set(CMAKE_SYSTEM_NAME Linux)  # also for macOS, since zig has no -bundle
if("$ENV{ZIG_TARGET}" MATCHES "windows")
  set(CMAKE_SYSTEM_NAME Windows)
endif()
set(CMAKE_CXX_COMPILER $ENV{PYTHON} -m ziglang c++ -target $ENV{ZIG_TARGET})
set(CMAKE_MODULE_LINKER_FLAGS_INIT -s)
# Known of zig: each check would link, for which it builds a C++ library first.
set(CMAKE_CXX_COMPILER_FORCED ON)
set(CMAKE_HAVE_LIBC_PTHREAD ON)
