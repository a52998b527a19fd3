"""The commands. A wrong device count is refused here, since it would break the import of jax."""

import sys

from resnet_flax.errors import UserError
from resnet_flax.runtime import cpu

try:
    cpu.check_count()
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_status)
