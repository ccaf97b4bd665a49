"""`llamafactory-cli train --stage grpo` on an unmodified LLaMA-Factory.

Imported at every interpreter start by `llamafactory_grpo.pth`: keep this module free of imports.
"""

__version__ = "0.1.0"
