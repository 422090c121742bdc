"""The command `se-core`, which is also `python -m se_core`: the laboratory's, where the laboratory's packages are."""

import sys


def main() -> int:
    """Run the command line; 1 where a package that the extra `lab` brings is missing, else what `lab.cli.main` says."""
    try:
        from se_core.lab import cli
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == "se_core":
            raise
        print(
            f"se-core: the library is installed, the packages of this command are not ({error.name} is missing): "
            "pip install 'se-core[lab]'",
            file=sys.stderr,
        )
        return 1
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
