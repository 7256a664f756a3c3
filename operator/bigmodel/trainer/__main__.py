"""`python -m bigmodel.trainer`: one rank in this process, for debugging. BIGMODEL_RUN holds the TrainingRun as JSON;
torchrun's variables count.
"""

from bigmodel.trainer.main import main

main()
