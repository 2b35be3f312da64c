"""Let ``python -m llm2nifti.cli`` run the command line."""

from llm2nifti.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
