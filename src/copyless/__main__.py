from copyless.cli import main

main()
