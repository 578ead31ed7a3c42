#!/usr/bin/env bash
# All benchmarks at full size on a GPU, and their tables as a document:
#
#     benchmarks/gpu_tables.sh                       every measurement below
#     benchmarks/gpu_tables.sh pgd_resnet18 masked_b16_512
#
# Each leaves JSON lines in RESULTS; the document DOCUMENT is made of all that lie there, also of earlier calls, so what
# does not fit into one sitting may be done in several. A measurement that fails is named at the end, with status 1.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
RESULTS=${RESULTS:-benchmarks/results/gpu}
DOCUMENT=${DOCUMENT:-docs/results/h200.md}
TITLE=${TITLE:-Measured on one H200}

declare -A MEASUREMENTS=(
  [pgd_resnet18]="attack_steps.py --model=resnet18 --batch=2048"
  [pgd_resnet18_128]="attack_steps.py --model=resnet18 --batch=128"
  [pgd_wrn]="attack_steps.py --model=wrn-28-10 --batch=512"
  [pgd_wrn_128]="attack_steps.py --model=wrn-28-10 --batch=128"
  [pgd_vit]="attack_steps.py --model=ViT-B/32 --batch=512"
  [pgd_vit_128]="attack_steps.py --model=ViT-B/32 --batch=128"
  [train_wrn]="train_steps.py --model=wrn-28-10 --batch=256"
  [train_resnet18]="train_steps.py --model=resnet18 --batch=512 --dtype=bfloat16"
  [paper_steps]="paper_steps.py --model=resnet18 --batch=256 --dtype=bfloat16"
  [clip_b32]="clip_steps.py --model=ViT-B/32 --batch=256 --dtype=bfloat16"
  [clip_b32_128]="clip_steps.py --model=ViT-B/32 --batch=128 --dtype=bfloat16"
  [masked_b32]="masked_steps.py --model=ViT-B/32 --batch=512 --dtype=bfloat16"
  [masked_b16]="masked_steps.py --model=ViT-B/16 --batch=128 --dtype=bfloat16"
  [masked_b16_512]="masked_steps.py --model=ViT-B/16 --batch=512 --microbatches=4 --dtype=bfloat16"
  [masked_l14]="masked_steps.py --model=ViT-L/14 --batch=64 --dtype=bfloat16"
  [roofline]="roofline.py --batch=256"
  [autoattack]="autoattack.py --model=wrn-28-10 --images=1000"
)
ORDER=(pgd_resnet18 pgd_resnet18_128 pgd_wrn pgd_wrn_128 pgd_vit pgd_vit_128 train_wrn train_resnet18 paper_steps
  clip_b32 clip_b32_128 masked_b32 masked_b16 masked_b16_512 masked_l14 roofline autoattack)

for name in "$@"; do
  if [[ -z "${MEASUREMENTS[$name]:-}" ]]; then
    echo "error: no measurement $name: expected some of ${ORDER[*]}" >&2
    exit 1
  fi
done
failed=()
for name in "${@:-${ORDER[@]}}"; do
  echo "== $name: benchmarks/${MEASUREMENTS[$name]}"
  # shellcheck disable=SC2086  # the words are separate arguments
  "$PYTHON" benchmarks/${MEASUREMENTS[$name]} "--output=$RESULTS/$name.json" || failed+=("$name")
done
files=()
for name in "${ORDER[@]}"; do
  [[ -f "$RESULTS/$name.json" ]] && files+=("$RESULTS/$name.json")
done
if [[ ${#files[@]} -gt 0 ]]; then
  "$PYTHON" benchmarks/tables.py "${files[@]}" "--title=$TITLE" "--output=$DOCUMENT" && echo "wrote $DOCUMENT"
fi
if [[ ${#failed[@]} -gt 0 ]]; then
  echo "error: failed, or not as strong as what it is compared with: ${failed[*]}" >&2
  exit 1
fi
