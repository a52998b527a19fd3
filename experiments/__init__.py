"""The commands. Before any of them imports jax: a count of devices that would break the import."""

import sys

from resnet_flax.errors import UserError
from resnet_flax.runtime import cpu

try:
    cpu.check_count()
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_status)
