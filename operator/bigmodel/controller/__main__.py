from bigmodel.controller.main import main

main()
