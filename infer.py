"""One answer: `python infer.py initiator=CLIP reference=FACE checkpoint=DIR output=OUT.mp4`, or `vidchat infer`."""

from vidchat.cli.infer import main

if __name__ == "__main__":
    main()
