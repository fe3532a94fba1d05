"""One stage of training: `python train.py stage=pretrain_av data=folder data.root=DIR`, or `vidchat train`."""

from vidchat.cli.train import main

if __name__ == "__main__":
    main()
