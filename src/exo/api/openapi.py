"""`python -m exo.api.openapi`: print the OpenAPI document, without starting anything."""

import json
import sys

from exo.api.app import routes_only


def main() -> None:
    """Print the document; the same source gives the same bytes."""
    json.dump(routes_only().openapi(), sys.stdout, indent=2, sort_keys=True, ensure_ascii=False)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
