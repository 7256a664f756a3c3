from bigmodel.launcher.main import main

main()
