"""Other packages that are told of shared arrays only when a program asks for it."""
