#!/bin/sh
# Lays out what a build with `--features cuda` needs of the CUDA toolkit, from NVIDIA's wheels on the Python package index,
# where the system has no toolkit of its own:
#
#   scripts/cuda-toolkit.sh DIR        # about 1.5 GB; needs python3 with pip, and a C compiler
#   . DIR/env                          # CUDA_HOME and what else the build reads
#   cargo build --release --features cuda --bin bertft-cuda --target-dir target/cuda
#
# No driver is needed to build: the library that a driver would bring is replaced by an empty one of the same name for the
# linker (DIR/stubs), which is never found at run time.
set -eu

dir=${1:?usage: scripts/cuda-toolkit.sh DIR}
version=13.0
python=${PYTHON:-python3}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

"$python" -m pip install --quiet --no-deps --upgrade --target "$dir/wheels" \
  "nvidia-cuda-nvcc==$version.*" "nvidia-cuda-crt==$version.*" "nvidia-nvvm==$version.*" "nvidia-cuda-runtime==$version.*" \
  "nvidia-cuda-cccl==$version.*" "nvidia-cublas==$version.*" "nvidia-cuda-nvrtc==$version.*" "nvidia-curand==10.4.0.*"

home=$dir/wheels/nvidia/cu13
chmod +x "$home"/bin/* "$home"/nvvm/bin/*
ln -sfn lib "$home/lib64"
# The wheels hold libraries by their versioned names alone; the linker looks for the plain ones.
for library in "$home"/lib/lib*.so.*; do
  ln -sf "$(basename "$library")" "${library%%.so.*}.so"
done

# The driver's functions, by every name that its header knows.
mkdir -p "$dir/stubs"
grep -o '\bcu[A-Z][A-Za-z0-9_]*' "$home/include/cuda.h" | sort -u | sed 's/.*/void &(void) {}/' > "$dir/stubs/cuda.c"
${CC:-cc} -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$dir/stubs/libcuda.so" "$dir/stubs/cuda.c"

cat > "$dir/env" <<END
export CUDA_HOME="$home" CUDA_PATH="$home"
export PATH="$home/bin:\$PATH"
export LIBRARY_PATH="$home/lib:$dir/stubs\${LIBRARY_PATH:+:\$LIBRARY_PATH}"
export LD_LIBRARY_PATH="$home/lib\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
# The portable form that candle's kernels are compiled to, and the version that cudarc binds.
export CUDA_COMPUTE_CAP=80 CUDARC_CUDA_VERSION=13000
END
echo "$home; now: . $dir/env"
