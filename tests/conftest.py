from pspnet.offline import go_offline

go_offline()
